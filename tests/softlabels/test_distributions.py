"""Label distributions sum to one, keep the gold label on top, and their controls change only what they should."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raylm.softlabels import distributions as d

scores = arrays(float, st.tuples(st.integers(1, 6), st.integers(2, 6)), elements=st.floats(0, 20))


def golds(rows, labels):
    return np.arange(rows) % labels


@given(scores, st.floats(0.01, 50), st.floats(0, 1))
def test_a_mix_is_a_distribution_with_the_gold_label_on_top(scores, temperature, share):
    gold = golds(*scores.shape)
    mixed = d.mix(d.from_scores(scores, temperature), gold, share)
    np.testing.assert_allclose(mixed.sum(1), 1)
    assert (mixed >= 0).all()
    assert (mixed[np.arange(len(gold)), gold] >= mixed.max(1) - 1e-12).all()


@given(scores, st.floats(0, 0.5))
def test_a_share_up_to_a_half_is_never_lowered(scores, share):
    gold, soft = golds(*scores.shape), d.from_scores(scores, 1.0)
    plain = (1 - share) * d.onehot(gold, scores.shape[1]) + share * soft
    np.testing.assert_allclose(d.mix(soft, gold, share), plain, atol=1e-12)


def test_no_share_gives_hard_labels():
    soft = d.from_scores(np.random.default_rng(0).random((4, 3)), 1.0)
    np.testing.assert_array_equal(d.mix(soft, golds(4, 3), 0.0), d.onehot(golds(4, 3), 3))


@given(st.integers(0, 99), st.floats(0.1, 0.9))
def test_rows_are_brought_to_the_same_entropy(seed, part):
    drawn = np.random.default_rng(seed).normal(size=(5, 4)) * 10
    target = part * np.log(4)
    np.testing.assert_allclose(d.entropy(d.at_entropy(drawn, target)), target, atol=1e-6)


@pytest.mark.parametrize("target", [0.0, 5.0])
def test_an_entropy_out_of_reach_is_refused(target):
    with pytest.raises(ValueError, match="target entropy"):
        d.at_entropy(np.eye(3), target)


def test_a_temperature_is_found_at_which_confidence_is_right():
    draws = np.random.default_rng(0)
    truth = draws.normal(size=(4_000, 5))
    gold = np.array([draws.choice(5, p=row) for row in d.from_scores(truth, 1.0)])
    assert d.fit_temperature(truth * 7, gold) == pytest.approx(7, rel=0.1)
    assert d.fit_temperature(np.zeros((3, 2)), np.zeros(3, int)) == 1.0


@given(scores, st.integers(0, 99))
def test_a_permutation_keeps_the_gold_value_and_the_others_as_a_set(scores, seed):
    gold, soft = golds(*scores.shape), d.from_scores(scores, 1.0)
    found = d.permuted(soft, gold, seed)
    rows = np.arange(len(gold))
    np.testing.assert_array_equal(found[rows, gold], soft[rows, gold])
    np.testing.assert_array_equal(np.sort(found, 1), np.sort(soft, 1))


def two_clusters(wrong=0):
    draws = np.random.default_rng(0)
    vectors = np.vstack([draws.normal(m, 0.3, size=(30, 4)) for m in ((3, 0, 0, 0), (0, 3, 0, 0))])
    gold = np.repeat([0, 1], 30)
    gold[:wrong] = 1
    return vectors, gold


def test_neighbours_pull_a_wrong_label_towards_theirs():
    vectors, gold = two_clusters(wrong=1)
    graph = d.neighbours(vectors, 8)
    spread = d.propagated(graph, gold, 3)
    np.testing.assert_allclose(spread.sum(1), 1)
    assert spread[0, 0] > 5 * spread[-1, 0]
    assert spread[:, 2].max() == 0
    enhanced = d.glle(vectors, graph, gold, 3)
    assert enhanced[0, 0] > enhanced[0, 1]  # linear in the features, so the wrong label is outvoted


def test_priors_and_uniform():
    np.testing.assert_allclose(d.prior(np.array([0, 0, 1]), 2)[0], [2 / 3, 1 / 3])
    np.testing.assert_allclose(d.uniform(2, 4), 0.25)
