"""From looks at held-out chains to forgetting, plasticity, and where an arm lies beside the front of learning rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2_000
LOOKS = {"looks": "exact", "token_looks": "token_accuracy"}
"""Where a run keeps what it got right of held-out chains: whole responses, or their tokens, both teacher-forced."""
Run = Mapping[str, Any]
"""`arm`, `seed`, `order` (names of the tasks), `looks` {set: {step: share got right}}, the same of tokens in
`token_looks`, `ends` {task: last step}, `distance` (L2 norm of all that the weights moved), `masks` (rows of the
isolation's log)."""
Figure = tuple[float, list[float]]
"""A mean with its 95% interval."""


def forgetting(run: Run) -> float:
    """Mean over all sets of the best share seen minus the last (source: the usual definition)."""
    return float(np.mean([max(looks.values()) - looks[max(looks)] for looks in run["looks"].values()]))


def untrained(run: Run) -> Run:
    """The model that a run starts from, as a run: it has forgotten nothing and has not moved."""
    looks = {name: dict.fromkeys(found, found[min(found)]) for name, found in run["looks"].items()}
    return {**run, "looks": looks, "distance": 0.0}


def learned(run: Run) -> float:
    """Plasticity: mean over the tasks of a sequence of the share got right when its own training ends."""
    return float(np.mean([run["looks"][task][end] for task, end in run["ends"].items()]))


def final(run: Run) -> float:
    """Mean over all sets of the share got right in the end."""
    return float(np.mean([looks[max(looks)] for looks in run["looks"].values()]))


def distance(run: Run) -> float:
    """How far all weights together moved, L2."""
    return float(run["distance"])


MEASURES: dict[str, Callable[[Run], float]] = {"forgetting": forgetting, "new_task": learned, "final": final}


def by(runs: Sequence[Run], looks: str) -> list[dict[str, Any]]:
    """The runs with one of `LOOKS` as what they are measured by."""
    return [{**run, "looks": run[looks]} for run in runs]


def interval(values: Sequence[float]) -> Figure:
    """Mean with its 95% interval, by bootstrap over the values."""
    found = np.array(values)
    draws = np.random.default_rng(0).choice(found, size=(RESAMPLES, len(found))).mean(1)
    return float(found.mean()), [float(bound) for bound in np.quantile(draws, [0.025, 0.975])]


def by_key(runs: Sequence[Run], arm: str) -> dict[tuple[int, tuple[str, ...]], Run]:
    """Runs of an arm by seed and order."""
    return {(run["seed"], tuple(run["order"])): run for run in runs if run["arm"] == arm}


def best(runs: Sequence[Run], arms: Sequence[str], measure: str = "final") -> str:
    """Of some arms the one with the highest mean, the first of equal ones."""
    return max(arms, key=lambda arm: float(np.mean([MEASURES[measure](r) for r in by_key(runs, arm).values()])))


def mean(runs: Sequence[Run], arm: str, measure: str) -> Figure:
    """Mean of an arm over seeds and orders."""
    return interval([MEASURES[measure](run) for run in by_key(runs, arm).values()])


def difference(runs: Sequence[Run], arm: str, other: str, measure: str) -> Figure:
    """An arm minus another one, in pairs of the same seed and order."""
    left, right = by_key(runs, arm), by_key(runs, other)
    both = sorted(set(left) & set(right))
    return interval([MEASURES[measure](left[key]) - MEASURES[measure](right[key]) for key in both])


def beyond_front(runs: Sequence[Run], arm: str, front: Sequence[str], at: Callable[[Run], float] = learned) -> Figure:
    """How much less an arm forgets than the front where `at` is the same; positive is better than the front.

    The front is that of `front` arms, the learning rates, and of the untrained model, in the same seed and order:
    forgetting against plasticity, or against the distance moved, linear between its points and constant beyond its
    ends.
    """
    gaps = []
    for key, own in sorted(by_key(runs, arm).items()):
        others = [by_key(runs, other)[key] for other in front]
        points = sorted((at(run), forgetting(run)) for run in (untrained(own), *others))
        expected = np.interp(at(own), [x for x, _ in points], [y for _, y in points])
        gaps.append(float(expected) - forgetting(own))
    return interval(gaps)


def drift(runs: Sequence[Run], arm: str) -> dict[str, Figure]:
    """Overlap of the last mask with the first, from disjoint batches, and the ceiling that noise sets to it."""
    last = [run["masks"][-1] for run in by_key(runs, arm).values()]
    last = [mask for mask in last if mask["halves_first"]]  # the first mask may have come after a single step
    if not last:
        return {}
    return {
        "drift_overlap": interval([mask["halves_first"] for mask in last]),
        "drift_noise_ceiling": interval([mask["noise_ceiling"] for mask in last]),
    }


def interference(runs: Sequence[Run], arm: str, alone: str) -> Figure:
    """Points that a task ends below a run of arm `alone` on this task only."""
    single = {(run["seed"], run["order"][0]): run for run in runs if run["arm"] == alone and len(run["order"]) == 1}
    gaps = []
    for (seed, order), run in sorted(by_key(runs, arm).items()):
        if len(order) > 1:
            looks = run["looks"]
            gaps += [learned(single[seed, task]) - looks[task][max(looks[task])] for task in order]
    return interval(gaps)
