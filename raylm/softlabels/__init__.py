"""Soft labels from what is known beside the gold label: the words of texts and labels, their neighbours, term weights."""
