"""Diagnosis of incomplete learning: which training samples a tuned model fails on, why, and what to do about it."""
