"""Does a reward model of branches judge better than a scalar one, and say rightly why?"""
