"""Intervals and tests for right-or-wrong scores: pure functions of counts and seeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

_Z95 = 1.959963984540054  # 97.5% point of the standard normal distribution
_CELLS = 4_000_000  # numbers that one chunk of bootstrap counts may hold


def wilson(correct: int, total: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; (0, 1) without observations.

    Unlike the normal approximation it stays inside [0, 1] and keeps its coverage for few questions and for
    accuracies near 0 or 1. source: Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927), eq. for the limits of p.

    Args:
        correct: successes, 0 <= correct <= total.
        total: observations.
        z: quantile of the standard normal; the default gives 95%.

    Raises:
        ValueError: counts out of range.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"correct={correct} is outside [0, total={total}]")
    if total == 0:
        return 0.0, 1.0
    share, weight = correct / total, z * z / total
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    # Rounding must not push the ends past the estimate or the unit interval.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def bootstrap(values: Sequence[float], resamples: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`.

    Give it per-question differences for a paired interval: resampling questions keeps both answers to one question
    together. Resamples are drawn as multinomial counts of the distinct values, which has the same distribution as
    drawing observations and costs no more than the number of distinct values.
    source: Efron and Tibshirani, "An introduction to the bootstrap" (1993), chapter 13.

    Args:
        values: one number an observation, at least one.
        resamples: resampled means.
        seed: equal seeds give equal intervals.
        level: coverage.

    Raises:
        ValueError: no observations.
    """
    if len(values) == 0:
        raise ValueError("bootstrap needs at least one value")
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    rng = np.random.default_rng(seed)
    total = len(values)
    chunk = max(1, _CELLS // len(distinct))
    means = [
        rng.multinomial(total, counts / total, size=min(chunk, resamples - start)) @ distinct / total
        for start in range(0, resamples, chunk)
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def mcnemar_exact(fixed: int, broken: int) -> float:
    """Two-sided exact p-value that two paired models are equally often right.

    Only questions on which they disagree speak: under the null hypothesis each is a fair coin.
    source: McNemar, Psychometrika 12 (1947), with the binomial distribution in place of the chi-square one.

    Args:
        fixed: questions that the first got wrong and the second right.
        broken: questions that the first got right and the second wrong.

    Raises:
        ValueError: a negative count.
    """
    if fixed < 0 or broken < 0:
        raise ValueError(f"counts must not be negative: fixed={fixed}, broken={broken}")
    total, fewer = fixed + broken, min(fixed, broken)
    tail = term = 1
    for i in range(fewer):
        term = term * (total - i) // (i + 1)  # C(total, i + 1)
        tail += term
    return min(1.0, 2 * tail / 2**total)


def pass_at_k(total: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k independent samples is right.

    1 - C(total - correct, k) / C(total, k). source: Chen et al., "Evaluating large language models trained on
    code" (2021), eq. 1.

    Args:
        total: independent samples of one question.
        correct: how many of them are right.
        k: 1 <= k <= total.

    Raises:
        ValueError: counts out of range.
    """
    if not (0 <= correct <= total and 1 <= k <= total):
        raise ValueError(f"need 0 <= correct <= total and 1 <= k <= total, got {correct=}, {total=}, {k=}")
    return 1.0 - math.comb(total - correct, k) / math.comb(total, k)


def majority(answers: Sequence[str]) -> int | None:
    """Index of the first answer equal to the most frequent one; None when all are empty.

    Empty answers do not vote, and ties go to the answer that came first. source: Wang et al., "Self-consistency
    improves chain of thought reasoning" (2022); the rule for ties is ours.
    """
    votes = Counter(text for answer in answers if (text := answer.strip()))
    if not votes:
        return None
    winner = votes.most_common(1)[0][0]  # Counter keeps first-seen order among equals
    return next(index for index, answer in enumerate(answers) if answer.strip() == winner)
