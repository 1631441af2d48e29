"""Drawing tokens: the distribution, the nucleus, and independence of the other rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.llm.sampling import draw, log_probabilities, uniforms

LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5])


def many(count, temperature, top_p=1.0):
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    rows = LOGITS.expand(count, -1)
    return draw(rows, torch.full((count,), temperature), torch.full((count,), top_p), grid)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_shares_are_the_softmax_at_the_temperature(temperature):
    shares = torch.bincount(many(20_000, temperature), minlength=5) / 20_000
    assert torch.allclose(shares, (LOGITS / temperature).softmax(-1), atol=2e-4)


def test_zero_temperature_is_the_best_token_whatever_the_number():
    assert many(50, 0.0).tolist() == [0] * 50


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, {0}), (0.7, {0, 2}), (0.9, {0, 2, 4, 1}), (1.0, {0, 1, 2, 3, 4})])
def test_a_nucleus_is_the_smallest_set_with_the_mass(top_p, kept):
    probabilities = LOGITS.softmax(-1)
    expected, mass = set(), 0.0
    for token in probabilities.argsort(descending=True).tolist():
        if mass >= top_p:
            break
        expected.add(token)
        mass += probabilities[token].item()
    assert expected == kept
    assert set(many(20_000, 1.0, top_p).tolist()) == kept


def test_a_nucleus_wider_than_the_first_guess_is_found():
    flat = torch.zeros(1, 5000)
    drawn = draw(flat.expand(2000, -1), torch.ones(2000), torch.full((2000,), 0.9), torch.linspace(0, 0.999, 2000))
    assert len(set(drawn.tolist())) > 1500


@settings(deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1, exclude_max=True))
def test_a_row_is_drawn_alike_in_any_company(seed, number):
    mates = torch.randn(7, 50, generator=torch.Generator().manual_seed(seed))
    how = (torch.full((7,), 0.8), torch.tensor([1.0, 0.9, 1.0, 0.5, 1.0, 1.0, 0.7]))
    numbers = torch.full((7,), number, dtype=torch.float64)
    together = draw(mates, *how, numbers)
    alone = [draw(mates[i : i + 1], how[0][i : i + 1], how[1][i : i + 1], numbers[i : i + 1]).item() for i in range(7)]
    assert together.tolist() == alone


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    numbers = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, torch.ones(3), torch.ones(3), numbers).tolist() == [0, 2, 2]


def test_log_probabilities_are_those_at_temperature_one():
    tokens = torch.tensor([3])
    assert log_probabilities(LOGITS[None], tokens).item() == pytest.approx(LOGITS.log_softmax(-1)[3].item())


def test_numbers_depend_on_seed_and_sample_and_start_alike_at_any_length():
    assert np.array_equal(uniforms(3, 1, 10), uniforms(3, 1, 20)[:10])
    assert not np.array_equal(uniforms(3, 1, 10), uniforms(3, 2, 10))
    assert not np.array_equal(uniforms(3, 1, 10), uniforms(4, 1, 10))
    assert not np.array_equal(uniforms(1, 0, 10), uniforms(0, 1, 10))
