"""Several objectives at once: who is beaten by whom, and how much of the space of outcomes a front covers."""

from __future__ import annotations

import numpy as np

from raylm.config import Direction


def losses(values: np.ndarray, modes: tuple[Direction, ...]) -> np.ndarray:
    """Values with those that are to be large turned round, so that less is better everywhere; [trials, objectives]."""
    signs = np.array([-1.0 if mode == "max" else 1.0 for mode in modes])
    return np.asarray(values, dtype=float) * signs


def front(points: np.ndarray) -> np.ndarray:
    """Which points no other one beats: is at least as good in everything and better in something.

    Args:
        points: [trials, objectives], less is better.

    Returns:
        [trials], bool. Of equal points all are in, or none.
    """
    least = (points[:, None] <= points[None]).all(-1) & (points[:, None] < points[None]).any(-1)
    found: np.ndarray = np.logical_not(least.any(0))
    return found


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Volume of what is beaten by some point and better than the reference (source: Zitzler and Thiele, 1998).

    By slicing along the last objective (source: While et al., 2006); meant for fronts of a few hundred points in two
    to four objectives.

    Args:
        points: [trials, objectives], less is better; those not better than the reference in everything add nothing.
        reference: [objectives].
    """
    inside = points[(points < reference).all(1)]
    if not len(inside):
        return 0.0
    if inside.shape[1] == 1:
        return float(reference[0] - inside.min())
    order = inside[np.argsort(inside[:, -1], kind="stable")]
    tops = np.append(order[1:, -1], reference[-1])
    depths = tops - order[:, -1]
    return float(sum(
        depth * hypervolume(order[: place + 1, :-1], reference[:-1])
        for place, depth in enumerate(depths)
        if depth > 0
    ))  # fmt: skip


def compromise(points: np.ndarray) -> int:
    """The point of a front that is closest to the best of every objective, each scaled to the front's own span.

    Args:
        points: [trials, objectives], less is better.
    """
    low = points.min(0)
    span = points.max(0) - low
    scaled = (points - low) / np.where(span > 0, span, 1.0)
    return int(np.argmin((scaled**2).sum(1)))
