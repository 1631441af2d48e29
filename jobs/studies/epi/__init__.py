"""Does evolving isolation reduce forgetting?"""
