"""The whole loop as one job."""
