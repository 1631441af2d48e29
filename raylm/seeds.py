"""Seeds that depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib


def stable_seed(seed: int, *parts: object) -> int:
    """A seed in [0, 2^31) that depends on `seed` and `parts` alone, in every process."""
    text = "\x1f".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF
