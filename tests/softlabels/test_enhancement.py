"""Soft targets over candidates: entropy as asked, the relevant document on top, folds that hide their own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.softlabels import enhancement


def entropy(rows):
    return -(rows * np.log(np.maximum(rows, 1e-300))).sum(1)


def drawn(seed, rows=5, width=9):
    draws = np.random.default_rng(seed)
    allowed = draws.random((rows, width)) < 0.7
    allowed[np.arange(rows), np.arange(rows)] = True
    allowed[:, -2:] = True
    return draws.normal(0, draws.choice([1e-4, 1.0, 1e3]), (rows, width)), allowed, np.arange(rows)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.05, 1.5))
def test_every_row_has_the_entropy_asked_for(seed, target):
    scores, allowed, _ = drawn(seed)
    found = enhancement.at_entropy(scores, allowed, target)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found[~allowed] == 0).all()
    np.testing.assert_allclose(entropy(found), np.minimum(target, 0.95 * np.log(allowed.sum(1))), atol=2e-3)
    order = np.where(allowed, scores, -np.inf).argmax(1)
    assert (found.argmax(1) == order).all()


def test_equal_scores_and_single_candidates_stay_finite():
    allowed = np.array([[True, True, True], [True, False, False]])
    found = enhancement.at_entropy(np.zeros((2, 3)), allowed, 0.5)
    np.testing.assert_allclose(found, [[1 / 3] * 3, [1, 0, 0]])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0.1, 1.5))
def test_the_relevant_document_stays_on_top(seed, share, target):
    scores, allowed, gold = drawn(seed)
    found = enhancement.mixed(enhancement.at_entropy(scores, allowed, target), gold, share)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found[np.arange(5), gold] >= found.max(1) - 1e-12).all()
    assert (found[~allowed] == 0).all()
    if share <= 0.5:  # no other document can pass it
        soft = enhancement.at_entropy(scores, allowed, target)
        others = np.ones_like(soft, dtype=bool)
        others[np.arange(5), gold] = False
        np.testing.assert_allclose(found[others], (share * soft)[others], atol=1e-9)


def test_uniform_has_the_entropy_that_other_kinds_have_at_most():
    allowed, gold = np.ones((3, 40), dtype=bool), np.array([0, 1, 2])
    found = enhancement.uniform(allowed, gold, share=0.3, entropy=1.0)
    bound = entropy(np.array([[0.7, 0.3]]))[0] + 0.3
    np.testing.assert_allclose(entropy(found), bound, atol=1e-3)
    other = enhancement.mixed(
        enhancement.at_entropy(np.random.default_rng(0).normal(size=(3, 40)), allowed, 1.0), gold, 0.3
    )
    assert (entropy(other) <= bound + 1e-9).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_permuted_rows_keep_their_values_and_the_relevant_one(seed):
    scores, allowed, gold = drawn(seed)
    rows = enhancement.mixed(enhancement.at_entropy(scores, allowed, 1.0), gold, 0.3)
    found = enhancement.permuted(rows, allowed, gold, range(5))
    np.testing.assert_allclose(np.sort(found, axis=1), np.sort(rows, axis=1))
    np.testing.assert_array_equal(found[np.arange(5), gold], rows[np.arange(5), gold])
    assert (found[~allowed] == 0).all()
    np.testing.assert_array_equal(found, enhancement.permuted(rows, allowed, gold, range(5)))


@pytest.mark.parametrize(("queries", "folds"), [(10, 3), (2, 5), (7, 1)])
def test_folds_are_of_like_size_and_hide_their_own(queries, folds):
    found = enhancement.Folds(queries, folds, seed=0)
    sizes = np.bincount(found.of)
    assert sizes.max() - sizes.min() <= 1
    for fold in range(found.count):
        seen = found.others(fold, found.of)
        assert (seen == (found.of != fold)).all() or folds == 1
        assert seen.any()


def test_a_head_has_not_seen_the_queries_that_it_scores():
    """Labels that only a fold's own rows give away: a cross-fitted head does not know them, one that saw them does."""
    draws = np.random.default_rng(0)
    features, fold = draws.normal(size=(200, 50)), np.repeat([0, 1], 100)
    labels = draws.integers(0, 2, 200)
    rates = []
    for count in (2, 1):
        folds = enhancement.Folds(2, count, seed=0)
        head = enhancement.RelevanceHead(folds).fit(features, labels, fold if count == 2 else fold * 0)
        right = [
            (head.logits(features[fold == own], own if count == 2 else 0) > 0) == labels[fold == own] for own in (0, 1)
        ]
        rates.append(np.mean(right))
    assert abs(rates[0] - 0.5) < 0.12
    assert rates[1] > 0.65


def test_a_head_finds_what_matters():
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 2, 400)
    features = np.stack([labels + draws.normal(0, 0.5, 400), draws.normal(size=400)], axis=1)
    head = enhancement.RelevanceHead(enhancement.Folds(400, 4, 0)).fit(features, labels, np.arange(400) % 4)
    strong, weak = head.coefficients()
    assert strong > 3 * abs(weak)
    assert head.logits(features.reshape(20, 20, 2), 1).shape == (20, 20)
