"""Words from token vectors, and their weights: sub-words are one word, and a fold's heads have not seen it."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.softlabels.terms import Reading, Statistics, TermHeads, Weighted, embedding, reading, spans
from raylm.softlabels.words import segmenter

SPLIT = segmenter("words")


def test_sub_words_and_repeated_words_become_one_vector():
    text = "Red hats, red!"
    offsets = [(0, 0), (0, 3), (4, 7), (7, 8), (8, 9), (10, 13), (13, 14), (0, 0)]  # [CLS] red hat ##s , red ! [SEP]
    found = reading(text, offsets, np.arange(8)[:, None] * np.ones((8, 2)), SPLIT)
    assert found.words == ("red", "hats")
    np.testing.assert_array_equal(found.counts, [2, 1])
    np.testing.assert_allclose(found.vectors[:, 0], [(1 + 5) / 2, (2 + 3) / 2])


def test_what_the_encoder_did_not_read_is_left_out():
    found = reading("one two three", [(0, 3), (4, 7)], np.ones((2, 2)), SPLIT)
    assert found.words == ("one", "two")


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=30))
def test_spans_are_in_order_and_are_the_words(text):
    found = spans(text, SPLIT)
    assert all(start <= end <= after for (_, start, end), (_, after, _) in pairwise(found))
    if len(text.lower()) == len(text):
        assert [word for word, _, _ in found] == SPLIT(text)
        assert all(text.lower()[start:end] == word for word, start, end in found)


def test_heads_are_least_squares_on_the_other_folds():
    draws = np.random.default_rng(0)
    rows = [(fold, draws.normal(size=(6, 3)), draws.integers(0, 2, 6)) for fold in (0, 1, 2, 0, 1, 2)]
    heads = TermHeads(3, 3, ridge=1e-9)
    for fold, vectors, targets in rows:
        heads.add(fold, vectors, targets)
    heads.fit()
    for own in range(3):
        seen = [(v, t) for fold, v, t in rows if fold != own]
        inputs = np.hstack([np.concatenate([v for v, _ in seen]), np.ones((24, 1))])
        expected, *_ = np.linalg.lstsq(inputs, np.concatenate([t for _, t in seen]), rcond=None)
        np.testing.assert_allclose(heads.weights_[own], expected, atol=1e-6)
    assert heads.weights(np.zeros((2, 3))).shape == (3, 2)
    assert (heads.weights(draws.normal(size=(50, 3))) >= 0).all()


def test_rare_words_weigh_more_and_long_documents_less():
    found = [
        Reading(("the", "red"), np.ones(2), np.zeros((2, 0))),
        Reading(("the",), np.ones(1), np.zeros((1, 0))),
    ]
    statistics = Statistics(found)
    for weights in (statistics.bm25(found[0]), statistics.keyword(found[0])):
        assert weights[1] > weights[0] > 0
    assert statistics.rarity(Reading(("blue", "red"), np.ones(2), np.zeros((2, 0)))).tolist()[0] == 0
    longer = Reading(("red", "x"), np.array([1.0, 50.0]), np.zeros((2, 0)))
    assert statistics.bm25(longer)[0] < statistics.bm25(found[0])[1]


def test_vectors_are_weighted_sums_of_length_1():
    found = Reading(("a", "b"), np.ones(2), np.array([[2.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(embedding(found, np.array([[1.0, 0.0], [1.0, 2.0]])), [[1, 0], [0.5**0.5, 0.5**0.5]])
    empty = Reading((), np.zeros(0), np.zeros((0, 2)))
    np.testing.assert_array_equal(embedding(empty, np.zeros((1, 0))), [[0, 0]])
    columns = {}
    rows = Weighted(columns)
    rows.add(found, np.array([3.0, 4.0]))
    rows.add(empty, np.zeros(0))
    np.testing.assert_allclose(rows.matrix(2).toarray(), [[0.6, 0.8], [0, 0]])
