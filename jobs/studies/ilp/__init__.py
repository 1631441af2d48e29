"""Planted causes: does the diagnosis name them, and does its repair mend them?"""
