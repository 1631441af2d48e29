"""Supervised fine-tuning with evolving parameter isolation."""
