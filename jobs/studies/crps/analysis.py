"""From runs to claims: the data-efficiency multiplier and differences between arms, with intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

Run = dict[str, Any]
Curves = dict[int, dict[int, np.ndarray]]
"""By seed and size, whether each question was answered right."""
RESAMPLES = 2_000
REFERENCE = "A0_rejection"
LARGEST = 64.0
"""Multipliers off a fitted line lie between 1 / LARGEST and LARGEST: beyond, a nearly flat line says nothing."""


def needed(sizes: Sequence[float], accuracies: Sequence[float], target: float) -> float:
    """Size at which a rising curve reaches `target`: log-linear between its points, after isotonic regression.

    Below the curve's first point the first size is returned, above its last infinity: the answer is censored there.
    """
    logs = np.log(np.asarray(sizes, dtype=float))
    fitted = isotonic_regression(np.asarray(accuracies, dtype=float)).x
    if target <= fitted[0]:
        return float(sizes[0])
    if target > fitted[-1]:
        return math.inf
    place = int(np.searchsorted(fitted, target))
    low, high = fitted[place - 1], fitted[place]
    share = (target - low) / (high - low)
    return float(np.exp(logs[place - 1] + share * (logs[place] - logs[place - 1])))


def multiplier(runs: Sequence[Run], arm: str, size: int, suite: str, axis: str = "n") -> dict[str, Any]:
    """How many times as many rejection-sampled examples (or tokens) reach an arm's accuracy at `size`.

    The interval is a percentile bootstrap over seeds and, within each, over questions. What A0 never reaches counts as
    the largest size tried, so the bounds are too low rather than too high there; `censored` is the share of resamples
    in which that happened.
    """
    draws = np.random.default_rng(0)
    seeds = sorted({run["seed"] for run in runs})
    curve = {(run["seed"], run[axis]): np.array(run[suite]) for run in runs if run["arm"] == REFERENCE}
    ours = {run["seed"]: np.array(run[suite]) for run in runs if run["arm"] == arm and run[axis] == size}
    sizes = sorted({key[1] for key in curve if all((seed, key[1]) in curve for seed in seeds)})

    def once(chosen: Sequence[int], questions: dict[int, np.ndarray]) -> tuple[float, bool]:
        points = [np.mean([curve[seed, n][questions[seed]].mean() for seed in chosen]) for n in sizes]
        target = float(np.mean([ours[seed][questions[seed]].mean() for seed in chosen]))
        found = needed(sizes, points, target)
        return min(found, sizes[-1]) / size, math.isinf(found)

    everything = {seed: np.arange(len(ours[seed])) for seed in seeds}
    value, censored = once(seeds, everything)
    samples = []
    for _ in range(RESAMPLES):
        chosen = list(draws.choice(seeds, size=len(seeds)))
        questions = {seed: draws.integers(0, len(ours[seed]), len(ours[seed])) for seed in set(chosen)}
        samples.append(once(chosen, questions))
    values = np.array([each[0] for each in samples])
    return {
        "multiplier": value,
        "censored": censored,
        "interval": [float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))],
        "censored_share": float(np.mean([each[1] for each in samples])),
    }


def difference(runs: Sequence[Run], first: str, second: str, suite: str, sizes: Sequence[int]) -> dict[str, Any]:
    """Mean accuracy of one arm minus another's over common sizes and seeds, question by question."""
    draws = np.random.default_rng(0)
    by_seed: dict[int, list[np.ndarray]] = defaultdict(list)
    known = {(run["arm"], run["seed"], run["n"]): np.array(run[suite], dtype=float) for run in runs}
    for seed in sorted({run["seed"] for run in runs}):
        for size in sizes:
            if (first, seed, size) in known and (second, seed, size) in known:
                by_seed[seed].append(known[first, seed, size] - known[second, seed, size])
    each = {seed: np.mean(changes, axis=0) for seed, changes in by_seed.items()}
    seeds = list(each)
    samples = []
    for _ in range(RESAMPLES):
        chosen = draws.choice(seeds, size=len(seeds))
        samples.append(np.mean([draws.choice(each[seed], size=len(each[seed])).mean() for seed in chosen]))
    return {
        "difference": float(np.mean([values.mean() for values in each.values()])),
        "interval": [float(np.quantile(samples, 0.025)), float(np.quantile(samples, 0.975))],
        "seeds": len(seeds),
    }


def extrapolated(runs: Sequence[Run], arm: str, suite: str, sizes: Sequence[int]) -> dict[str, Any]:
    """The multiplier off a straight line through A0's runs, which goes on beyond the largest size that was tried.

    Accuracy is taken to rise by `slope` with every doubling of the examples, from a level of each seed's own; the arm's
    mean distance above that line at `sizes` over the slope is the logarithm of the multiplier. A line that does not
    rise reaches nothing: LARGEST, or 1 / LARGEST for an arm below it. The interval is that of `multiplier`.
    """
    draws = np.random.default_rng(0)
    seeds = sorted({run["seed"] for run in runs})
    curves: Curves = defaultdict(dict)
    ours: Curves = defaultdict(dict)
    for run in runs:
        if run["arm"] == REFERENCE and run["n"] >= min(sizes):
            curves[run["seed"]][run["n"]] = np.array(run[suite], dtype=float)
        if run["arm"] == arm and run["n"] in sizes:
            ours[run["seed"]][run["n"]] = np.array(run[suite], dtype=float)

    count = {seed: len(next(iter(curves[seed].values()))) for seed in seeds}
    slope, value = _off_the_line(curves, ours, seeds, {seed: np.arange(count[seed]) for seed in seeds})
    samples = []
    for _ in range(RESAMPLES):
        chosen = list(draws.choice(seeds, size=len(seeds)))
        questions = {seed: draws.integers(0, count[seed], count[seed]) for seed in set(chosen)}
        samples.append(_off_the_line(curves, ours, chosen, questions))
    slopes, values = np.array(samples).T
    return {
        "multiplier": value,
        "interval": [float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))],
        "slope": slope,
        "slope_interval": [float(np.quantile(slopes, 0.025)), float(np.quantile(slopes, 0.975))],
    }


def _off_the_line(
    curves: Curves, ours: Curves, chosen: Sequence[int], questions: dict[int, np.ndarray]
) -> tuple[float, float]:
    """Slope of the reference by doubling, and the multiplier of the other arm, for a resample."""
    at: list[np.ndarray] = []
    rise: list[np.ndarray] = []
    above: list[tuple[float, float]] = []
    for seed in chosen:
        doublings = np.log2(list(curves[seed]))
        accuracy = np.array([right[questions[seed]].mean() for right in curves[seed].values()])
        at.append(doublings - doublings.mean())
        rise.append(accuracy - accuracy.mean())
        for size, right in ours[seed].items():
            above.append((right[questions[seed]].mean() - accuracy.mean(), math.log2(size) - doublings.mean()))
    places = np.concatenate(at)
    slope = float(places @ np.concatenate(rise) / (places @ places))
    gap = float(np.mean([height - slope * place for height, place in above]))
    if slope <= 0:
        return slope, LARGEST ** float(np.sign(gap))
    limit = math.log2(LARGEST)
    return slope, 2.0 ** min(max(gap / slope, -limit), limit)
