"""Do soft labels from words help text classification?"""
