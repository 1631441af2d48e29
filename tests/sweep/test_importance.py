"""Importances say what moved an objective."""

import numpy as np
import pytest

from raylm.config import build
from raylm.sweep.config import ParameterConfig
from raylm.sweep.importance import importances
from raylm.sweep.space import draw

SPACE = {
    "strong": build(ParameterConfig, {"uniform": [0, 1]}),
    "weak": build(ParameterConfig, {"loguniform": [0.01, 1]}),
    "listed": build(ParameterConfig, {"choice": ["a", "b"]}),
    "rare": build(ParameterConfig, {"integer": [1, 5], "when": {"listed": "a"}}),
}


def test_what_moves_the_objective_comes_first():
    random = np.random.default_rng(0)
    points = [draw(SPACE, random) for _ in range(40)]
    values = [point["strong"] ** 2 + 0.02 * (point["listed"] == "a") for point in points]
    found = importances(SPACE, points, values)
    assert next(iter(found)) == "strong"
    assert found["strong"] > 0.8
    assert set(found) == {"strong", "weak", "listed"}  # not every trial has the fourth
    assert sum(found.values()) == pytest.approx(1.0)


def test_nothing_is_said_of_few_or_equal_trials():
    points = [draw(SPACE, np.random.default_rng(seed)) for seed in range(10)]
    assert importances(SPACE, points, [1.0] * 10) == {}
    assert importances(SPACE, points[:5], [1.0, 2.0, 3.0, 4.0, 5.0]) == {}
