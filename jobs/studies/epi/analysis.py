"""From looks at held-out chains to forgetting, plasticity, and where an arm lies beside the front of learning rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2_000
Run = Mapping[str, Any]
"""`arm`, `seed`, `order` (names of the tasks), `looks` {set: {step: share got right}}, `ends` {task: last step}."""


def forgetting(run: Run) -> float:
    """Mean over all sets of the best share seen minus the last (source: the usual definition)."""
    return float(np.mean([max(looks.values()) - looks[max(looks)] for looks in run["looks"].values()]))


def learned(run: Run) -> float:
    """Plasticity: mean over the tasks of a sequence of the share got right when its own training ends."""
    return float(np.mean([run["looks"][task][end] for task, end in run["ends"].items()]))


def final(run: Run) -> float:
    """Mean over all sets of the share got right in the end."""
    return float(np.mean([looks[max(looks)] for looks in run["looks"].values()]))


MEASURES: dict[str, Callable[[Run], float]] = {"forgetting": forgetting, "new_task": learned, "final": final}


def mean(runs: Sequence[Run], arm: str, measure: str) -> tuple[float, list[float]]:
    """Mean of an arm over seeds and orders with its 95% interval, by bootstrap over the runs."""
    values = np.array([MEASURES[measure](run) for run in runs if run["arm"] == arm])
    draws = np.random.default_rng(0).choice(values, size=(RESAMPLES, len(values))).mean(1)
    return float(values.mean()), [float(bound) for bound in np.quantile(draws, [0.025, 0.975])]


def beyond_front(runs: Sequence[Run], arm: str, front: Sequence[str]) -> tuple[float, list[float]]:
    """How much less an arm forgets than the front at the same plasticity; positive is better than the front.

    The front is that of `front` arms, the learning rates, in the same seed and order: forgetting against plasticity,
    linear between its points and constant beyond its ends. Bootstrap over pairs of seed and order.
    """
    keys = sorted({(run["seed"], tuple(run["order"])) for run in runs if run["arm"] == arm})
    gaps = []
    for key in keys:
        here = [run for run in runs if (run["seed"], tuple(run["order"])) == key]
        points = sorted((learned(run), forgetting(run)) for run in here if run["arm"] in front)
        (own,) = [run for run in here if run["arm"] == arm]
        at = np.interp(learned(own), [x for x, _ in points], [y for _, y in points])
        gaps.append(float(at) - forgetting(own))
    draws = np.random.default_rng(0).choice(np.array(gaps), size=(RESAMPLES, len(gaps))).mean(1)
    return float(np.mean(gaps)), [float(bound) for bound in np.quantile(draws, [0.025, 0.975])]
