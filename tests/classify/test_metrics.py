"""Figures of label probabilities on cases that can be worked out by hand."""

import numpy as np
import pytest

from raylm.classify.metrics import calibration_error, measure, reliability

SURE = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])


def test_a_classifier_that_is_as_right_as_it_says_has_no_calibration_error():
    rows = np.tile([0.75, 0.25], (4, 1))
    assert calibration_error(rows, np.array([0, 0, 0, 1])) == pytest.approx(0)
    assert calibration_error(rows, np.array([1, 1, 1, 1])) == pytest.approx(0.75)


def test_bins_hold_their_own_texts():
    rows = reliability(SURE, np.array([0, 1, 1, 1]))
    assert sum(row["texts"] for row in rows) == 4
    assert rows[-1] == {"texts": 2, "confidence": pytest.approx(0.9), "accuracy": 0.5}


def test_figures():
    found = measure(SURE, np.array([0, 1, 1, 1]), np.array([50, 5]))
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    assert found["tail_recall"] == pytest.approx(2 / 3)
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.1, 0.8, 0.6]).mean())
