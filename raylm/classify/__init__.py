"""Text classification with soft labels."""
