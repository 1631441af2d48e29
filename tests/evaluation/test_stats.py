import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from raylm.evaluation.stats import bootstrap, majority, mcnemar_exact, pass_at_k, wilson

counts = st.integers(0, 300).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@given(counts)
def test_wilson_equals_scipy(pair):
    correct, total = pair
    low, high = wilson(correct, total)
    if total == 0:
        assert (low, high) == (0.0, 1.0)
        return
    expected = scipy_stats.binomtest(correct, total).proportion_ci(method="wilson")
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


@given(counts)
def test_wilson_holds_the_estimate_and_mirrors(pair):
    correct, total = pair
    low, high = wilson(correct, total)
    assert 0 <= low <= high <= 1
    if total:
        assert low <= correct / total <= high
    mirrored = wilson(total - correct, total)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)


def test_wilson_refuses_impossible_counts():
    with pytest.raises(ValueError, match="outside"):
        wilson(3, 2)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_binomial_test_and_is_symmetric(fixed, broken):
    value = mcnemar_exact(fixed, broken)
    assert 0 < value <= 1
    assert value == mcnemar_exact(broken, fixed)
    if fixed + broken:
        assert value == pytest.approx(scipy_stats.binomtest(fixed, fixed + broken, 0.5).pvalue, rel=1e-9)


def test_mcnemar_with_many_pairs_stays_exact():
    assert mcnemar_exact(2600, 2400) == pytest.approx(scipy_stats.binomtest(2600, 5000, 0.5).pvalue, rel=1e-9)


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 2)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(right, data):
    k = data.draw(st.integers(1, len(right)))
    subsets = list(combinations(right, k))
    brute = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(brute, abs=1e-12)


@pytest.mark.parametrize(("total", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_impossible_counts(total, correct, k):
    with pytest.raises(ValueError, match="need"):
        pass_at_k(total, correct, k)


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(3).integers(-1, 2, size=120).astype(float)
    low, high = bootstrap(values, 20_000, seed=1)
    expected = scipy_stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=5)
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.01)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.01)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        low, high = bootstrap(rng.normal(0.3, 1.0, size=80), 500, seed)
        hits += low <= 0.3 <= high
    assert 0.90 <= hits / 300 <= 0.99


@settings(max_examples=50)
@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=60), st.integers(0, 2**32))
def test_bootstrap_is_seeded_bounded_and_ignores_order(values, seed):
    low, high = bootstrap(values, 200, seed)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert (low, high) == bootstrap(values[::-1], 200, seed)


def test_bootstrap_chunks_do_not_change_the_size_of_the_answer(monkeypatch):
    values = np.random.default_rng(1).normal(size=50)
    whole = bootstrap(values, 4000, seed=2)
    monkeypatch.setattr("raylm.evaluation.stats._CELLS", 500)
    chunked = bootstrap(values, 4000, seed=2)
    assert chunked == pytest.approx(whole, abs=0.05)


def test_bootstrap_of_a_constant_is_a_point():
    assert bootstrap([0.5] * 9, 100, seed=0) == pytest.approx((0.5, 0.5))


def test_bootstrap_refuses_nothing():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([], 100, seed=0)


@pytest.mark.parametrize(
    ("answers", "index"),
    [(["4", "5", "5"], 1), (["7", "8"], 0), (["", "", "3"], 2), (["", " "], None), ([" 5", "5 ", "4"], 0), ([], None)],
)
def test_majority(answers, index):
    assert majority(answers) == index


def test_p_values_are_uniform_enough_under_the_null():
    rng = np.random.default_rng(11)
    below = sum(mcnemar_exact(fixed, 40 - fixed) <= 0.05 for fixed in rng.binomial(40, 0.5, size=2000))
    assert below / 2000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
