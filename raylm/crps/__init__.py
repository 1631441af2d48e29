"""Contrastive reasoning path synthesis: training chains written from the contrast between good and bad paths."""
