"""Losses against other ways to write them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from raylm.srm.losses import bradley_terry, centring, regression

SCORES = st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=8)


@given(SCORES, st.floats(0, 3))
def test_bradley_terry_is_cross_entropy_of_the_difference(pairs, margin):
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).T
    margins = torch.full((len(pairs),), margin).double()
    expected = functional.binary_cross_entropy_with_logits(chosen - rejected - margins, torch.ones_like(chosen))
    assert float(bradley_terry(chosen, rejected, margins)) == pytest.approx(float(expected))


@given(SCORES, st.floats(-5, 5))
def test_bradley_terry_does_not_see_a_common_level_and_centring_does(pairs, level):
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).T
    assert float(bradley_terry(chosen + level, rejected + level)) == pytest.approx(
        float(bradley_terry(chosen, rejected))
    )
    assert float(centring(chosen, -chosen)) == 0.0
    assert float(centring(chosen, rejected)) == pytest.approx(np.mean([(a + b) ** 2 for a, b in pairs]))


def test_equal_scores_cost_a_coin():
    assert float(bradley_terry(torch.zeros(3), torch.zeros(3))) == pytest.approx(np.log(2))


def test_regression_skips_missing_ratings():
    predicted = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    loss = regression(predicted, torch.tensor([0.0, float("nan"), 5.0]))
    assert loss.item() == pytest.approx((1 + 4) / 2)
    loss.backward()
    assert predicted.grad.tolist() == [1.0, 0.0, -2.0]
    assert float(regression(torch.ones(2), torch.full((2,), float("nan")))) == 0.0
