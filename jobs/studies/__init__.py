"""Studies: commands that produce the claims in the README, with their raw results."""
