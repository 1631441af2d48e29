"""The two sweeps that come with raylm, at micro size."""
