"""Soft labels from what is known beside the gold label: words of texts and labels, neighbours, term weights."""
