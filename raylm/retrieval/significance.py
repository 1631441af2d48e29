"""Is one ranking better than another on the same queries? Paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raylm.evaluation.stats import bootstrap

_CELLS = 4_000_000


def randomisation(differences: Sequence[float], resamples: int, seed: int) -> float:
    """Two-sided p-value of Fisher's paired randomisation test: how often random signs give as large a mean.

    Exact for up to as many sign patterns as `resamples`; drawn otherwise, the observed one among them
    (source: Smucker, Allan and Carterette 2007, "A comparison of statistical significance tests for information
    retrieval evaluation").
    """
    found = np.asarray([value for value in differences if value != 0.0], dtype=np.float64)
    observed = abs(found.sum()) - 1e-12
    if not len(found):
        return 1.0
    if len(found) < 60 and 2 ** len(found) <= resamples:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(found))[:, None] >> np.arange(len(found))) & 1)
        return float((np.abs(signs @ found) >= observed).mean())
    draws, hits, left = np.random.default_rng(seed), 0, resamples
    while left:
        count = min(left, max(1, _CELLS // len(found)))
        signs = 1.0 - 2.0 * draws.integers(0, 2, (count, len(found)), dtype=np.int8)
        hits += int((np.abs(signs @ found) >= observed).sum())
        left -= count
    return (hits + 1) / (resamples + 1)


def t_test(differences: Sequence[float]) -> float:
    """Two-sided p-value of the paired t-test; 1 where all differences are alike and 0."""
    from scipy.stats import ttest_1samp

    found = np.asarray(differences, dtype=np.float64)
    if len(found) < 2 or np.ptp(found) == 0:
        return 1.0 if not len(found) or found[0] == 0 or len(found) < 2 else 0.0
    return float(ttest_1samp(found, 0.0).pvalue)


def compare(
    before: Mapping[str, float], after: Mapping[str, float], resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Two rankings' values of one measure, query by query.

    Returns:
        queries, before, after (means), difference with its bootstrap `interval`, p_randomisation, p_t, and how many
        queries are better, worse and equal.

    Raises:
        ValueError: they are of different queries.
    """
    if before.keys() != after.keys():
        raise ValueError(f"{len(before.keys() ^ after.keys())} queries have a value on one side only")
    gaps = [after[query] - before[query] for query in sorted(before)]
    return {
        "queries": len(gaps),
        "before": float(np.mean(list(before.values()))),
        "after": float(np.mean(list(after.values()))),
        "difference": float(np.mean(gaps)),
        "interval": list(bootstrap(gaps, resamples, seed)),
        "p_randomisation": randomisation(gaps, resamples, seed),
        "p_t": t_test(gaps),
        "better": sum(gap > 0 for gap in gaps),
        "worse": sum(gap < 0 for gap in gaps),
        "equal": sum(gap == 0 for gap in gaps),
    }
