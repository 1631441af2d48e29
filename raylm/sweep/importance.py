"""How much of an objective's variance each parameter explains, by functional ANOVA over random forests."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from raylm.sweep.space import Point, Space, bounds

LEAST = 6
"""Trials below which nothing is said."""


def importances(space: Space, points: Sequence[Point], values: Sequence[float]) -> dict[str, float]:
    """Share of the variance that each parameter explains, largest first (source: Hutter et al., 2014; by Optuna).

    Args:
        space: the parameters; those that only some of the points have are left out.
        points: of the finished trials.
        values: of one objective.

    Returns:
        name to a share; the shares add up to 1. Empty for fewer than LEAST trials, or when all values are the same.
    """
    if len(points) < LEAST or np.ptp(np.asarray(values)) == 0:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for point, value in zip(points, values, strict=True):
            study.add_trial(optuna.trial.create_trial(
                params={name: _value(space, name, held) for name, held in point.items()},
                distributions={name: _distribution(space, name) for name in point},
                value=float(value),
            ))  # fmt: skip
        varied = [
            name for name in space if len({repr(p.get(name)) for p in points}) > 1 and all(name in p for p in points)
        ]
        if not varied:
            return {}
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0), params=varied
        )
    return {name: float(share) for name, share in sorted(found.items(), key=lambda item: -item[1])}


def _value(space: Space, name: str, value: Any) -> Any:
    listed = space[name].choice is not None or space[name].grid is not None
    return json.dumps(value) if listed else value


def _distribution(space: Space, name: str) -> Any:
    from optuna import distributions

    parameter = space[name]
    if (values := parameter.choice or parameter.grid) is not None:
        return distributions.CategoricalDistribution([json.dumps(value) for value in values])
    if parameter.integer is not None:
        return distributions.IntDistribution(*parameter.integer)
    low, high, step = bounds(parameter)
    return distributions.FloatDistribution(low, high, step=step, log=parameter.loguniform is not None)
