"""Scores become probabilities that hold."""

import numpy as np
import pytest

from raylm.srm.calibration import curve, error, scale


@pytest.mark.parametrize("factor", [0.2, 1.0, 8.0])
def test_the_scale_that_made_the_pairs_is_found(factor):
    draws = np.random.default_rng(0)
    odds = draws.normal(0, 2, 20000)
    won = draws.random(20000) < 1 / (1 + np.exp(-odds))
    differences = np.where(won, odds, -odds) / factor
    assert scale(differences) == pytest.approx(factor, rel=0.08)
    assert error(curve(differences * factor)) < 0.02
    assert error(curve(differences * factor * 5)) > 0.05


def test_a_few_pairs_that_are_all_right_ask_for_no_infinite_scale():
    few, many = scale(np.ones(5)), scale(np.ones(500))
    assert few == pytest.approx(np.log(6), rel=1e-3)  # sigmoid = 6 / 7
    assert few < many < 10


def test_nothing_to_learn_from_leaves_scores_alone():
    assert scale(np.zeros(4)) == 1.0
    assert scale(np.zeros(0)) == 1.0


def test_a_curve_counts_every_pair_and_halves_ties():
    rows = curve(np.array([0.0, 0.0, 2.0, -2.0, 30.0]))
    assert sum(row["pairs"] for row in rows) == 5
    assert rows[0] == {"low": 0.5, "pairs": 2, "confidence": 0.5, "accuracy": 0.5}
    assert rows[-1]["accuracy"] == 1.0
