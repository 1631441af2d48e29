"""Paired tests: exact where they can be, and right about what is known."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.retrieval.significance import compare, randomisation, t_test


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), max_size=8))
def test_few_differences_are_tested_exactly(gaps):
    observed = abs(sum(gaps))
    signs = list(itertools.product((-1, 1), repeat=len(gaps)))
    sums = [abs(sum(sign * gap for sign, gap in zip(row, gaps, strict=True))) for row in signs]
    assert randomisation(gaps, 1_000, 0) == pytest.approx(np.mean([each >= observed - 1e-12 for each in sums]))


def test_drawn_signs_come_near_the_exact_value_and_the_t_test():
    gaps = np.random.default_rng(1).normal(0.3, 1.0, 14).tolist()
    exact = randomisation(gaps, 2**14, 0)
    assert randomisation(gaps, 2**14 - 1, 0) == pytest.approx(exact, abs=0.02)
    assert t_test(gaps) == pytest.approx(exact, abs=0.05)


def test_p_values_of_equal_rankings_are_uniform():
    draws = np.random.default_rng(0)
    found = [randomisation(draws.normal(size=30).tolist(), 500, seed) for seed in range(300)]
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=0.04)
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


def test_a_comparison_is_by_query():
    before, after = {"a": 0.1, "b": 0.5, "c": 0.3}, {"c": 0.3, "b": 0.4, "a": 0.9}
    found = compare(before, after, 1_000)
    assert (found["better"], found["worse"], found["equal"], found["queries"]) == (1, 1, 1, 3)
    assert found["difference"] == pytest.approx(0.7 / 3)
    assert found["interval"][0] <= found["difference"] <= found["interval"][1]
    assert compare(before, before)["p_randomisation"] == compare(before, before)["p_t"] == 1.0
    with pytest.raises(ValueError, match="1 queries have a value on one side only"):
        compare(before, {"a": 1.0, "b": 1.0})
