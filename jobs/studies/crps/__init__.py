"""Does contrast beat filtering? Arms, sizes and seeds of CRPS against what keeps correct paths."""
