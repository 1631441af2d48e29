"""Rankings: the best of many scores with ties broken by document id, and several rankings made one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RRF_K = 60
"""Ranks are counted from here (source: Cormack et al. 2009)."""


class Hit(NamedTuple):
    """A document that a search found."""

    id: str
    score: float


def best(scores: np.ndarray, names: Sequence[str] | np.ndarray, k: int) -> list[int]:
    """Places of the k highest scores above minus infinity, highest first, equal ones by name.

    Which of equal scores make it into the k is decided by name too, not by their places.
    """
    k = min(k, len(scores))
    if k <= 0:
        return []
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero((scores >= least) & (scores > -np.inf))
    return sorted(candidates.tolist(), key=lambda place: (-scores[place], names[place]))[:k]


def reciprocal_rank(rankings: Sequence[Sequence[Hit]], k: int) -> list[Hit]:
    """Reciprocal rank fusion: a document's score is the sum of 1 / (60 + rank) over the rankings that have it.

    source: Cormack, Clarke and Buettcher (2009), "Reciprocal rank fusion outperforms Condorcet". Ties by id.
    """
    totals: dict[str, float] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            totals[hit.id] = totals.get(hit.id, 0.0) + 1.0 / (RRF_K + rank)
    return [Hit(*item) for item in sorted(totals.items(), key=lambda item: (-item[1], item[0]))[:k]]
