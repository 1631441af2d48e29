"""Served models: rewards that say why, vectors and search, on Ray Serve."""
