"""How scores become probabilities: one scale for all differences, and how well they then hold."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

LOW, HIGH = 1e-3, 1e3
"""Bounds of the scale."""


def scale(differences: np.ndarray) -> float:
    """The factor by which score differences of pairs, chosen less rejected, become log-odds: maximum likelihood.

    Targets are (n + 1) / (n + 2) and not 1, so that a few pairs, all ranked rightly, ask for no infinite factor.
    source: Platt (1999) for the targets, Guo et al. (2017) for one scale; applied to differences (I).
    """
    if not len(differences) or not np.any(differences):
        return 1.0
    target = (len(differences) + 1) / (len(differences) + 2)

    def nll(exponent: float) -> float:
        scaled = np.exp(exponent) * differences
        return float((np.logaddexp(0.0, -scaled) + (1 - target) * scaled).mean())

    found = minimize_scalar(nll, bounds=(np.log(LOW), np.log(HIGH)), method="bounded")
    return float(np.exp(found.x))


def curve(differences: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Calibration of pairs: for every bin of the probability that the higher score wins, pairs and how often it does.

    Args:
        differences: log-odds that the chosen one wins, [pairs].

    Returns:
        rows with low, pairs, confidence (mean) and accuracy, for bins that are not empty.
    """
    confidence = 1.0 / (1.0 + np.exp(-np.minimum(np.abs(differences), 60.0)))
    right = np.where(differences == 0, 0.5, differences > 0)
    places = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    rows = []
    for place in np.unique(places):
        there = places == place
        rows.append({
            "low": 0.5 + place / (2 * bins), "pairs": int(there.sum()),
            "confidence": float(confidence[there].mean()), "accuracy": float(right[there].mean()),
        })  # fmt: skip
    return rows


def error(rows: list[dict[str, float]]) -> float:
    """Expected calibration error of a curve: mean distance of confidence and accuracy, weighed by pairs."""
    count = sum(row["pairs"] for row in rows)
    return sum(row["pairs"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / count if count else 0.0
