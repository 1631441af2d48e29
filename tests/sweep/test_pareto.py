"""Fronts and hypervolumes, against Optuna's and against counting points."""

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from optuna._hypervolume import compute_hypervolume

from raylm.sweep.pareto import compromise, front, hypervolume, losses

optuna.logging.set_verbosity(optuna.logging.WARNING)
shapes = st.tuples(st.integers(1, 12), st.integers(2, 4))
points = arrays(float, shapes, elements=st.integers(0, 8).map(float))


@settings(max_examples=120, deadline=None)
@given(points)
def test_a_front_and_its_volume_are_optunas(found):
    study = optuna.create_study(directions=["minimize"] * found.shape[1])
    for row in found:
        study.add_trial(optuna.trial.create_trial(values=list(row)))
    ours = {tuple(row) for row in found[front(found)]}
    assert ours == {tuple(trial.values) for trial in study.best_trials}
    reference = np.full(found.shape[1], 6.0)
    inside = found[(found < reference).all(1)]
    theirs = compute_hypervolume(inside, reference) if len(inside) else 0.0
    assert hypervolume(found, reference) == pytest.approx(theirs)
    assert hypervolume(found[front(found)], reference) == pytest.approx(theirs)


def test_a_volume_is_the_share_of_random_points_that_are_beaten():
    random = np.random.default_rng(0)
    found, draws = random.random((20, 3)), random.random((40_000, 3))
    beaten = (found[None] <= draws[:, None]).all(-1).any(1).mean()
    assert hypervolume(found, np.ones(3)) == pytest.approx(beaten, abs=0.01)


@settings(max_examples=50, deadline=None)
@given(points, st.integers(0, 11))
def test_another_point_never_takes_volume_away(found, place):
    reference = np.full(found.shape[1], 9.0)
    fewer = np.delete(found, place % len(found), axis=0)
    assert hypervolume(fewer, reference) <= hypervolume(found, reference) + 1e-9


def test_directions_and_the_compromise():
    values = np.array([[0.1, 0.5], [0.2, 0.9], [0.9, 1.0]])
    turned = losses(values, ("min", "max"))
    assert turned.tolist() == [[0.1, -0.5], [0.2, -0.9], [0.9, -1.0]]
    assert front(turned).all()
    assert compromise(turned) == 1
    assert compromise(np.array([[1.0, 2.0]])) == 0
