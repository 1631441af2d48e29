"""Keyword search against the formula, word by word."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.errors import UserError
from raylm.retrieval.bm25 import BM25

TEXTS = st.lists(st.text("abcd ", max_size=20), min_size=1, max_size=12)


def by_formula(query, texts, k1=1.2, b=0.75):
    """Lucene's BM25."""
    split = [text.split() for text in texts]
    average = sum(map(len, split)) / len(split)
    found = []
    for words in split:
        counts, total = Counter(words), 0.0
        for word in query.split():
            holders = sum(word in other for other in split)
            if holders:
                rarity = math.log(1 + (len(split) - holders + 0.5) / (holders + 0.5))
                total += rarity * counts[word] / (counts[word] + k1 * (1 - b + b * len(words) / average))
        found.append(total)
    return found


@settings(deadline=None, max_examples=40)
@given(TEXTS, st.text("abcde ", max_size=8), st.integers(1, 15))
def test_scores_are_those_of_the_formula(texts, query, k):
    if not any(text.split() for text in texts):
        with pytest.raises(UserError, match="holds a word"):
            BM25.of(texts)
        return
    index, expected = BM25.of(texts), by_formula(query, texts)
    np.testing.assert_allclose(index.scores(query, np.arange(len(texts))), expected, atol=1e-5)
    places, scores = index.search([query], k)
    best = [score for score in sorted(expected, reverse=True) if score > 0][:k]
    np.testing.assert_allclose(scores[0], best + [0.0] * (k - len(best)), atol=1e-5)
    assert [expected[place] for place in places[0] if place >= 0] == pytest.approx(best, abs=1e-5)
    assert set(places[0][len(best) :]) <= {-1}


def test_a_saved_index_is_the_index(tmp_path):
    texts = ["the cats ran", "a cat runs", "dogs bark"]
    index = BM25.of(texts, stem="english")
    index.save(tmp_path)
    again = BM25.load(tmp_path)
    for query in ("cat running", "nothing", ""):
        for one, two in zip(index.search([query], 2), again.search([query], 2), strict=True):
            np.testing.assert_array_equal(one, two)
    assert set(again.search(["cat running"], 3)[0][0]) == {0, 1, -1}
    with pytest.raises(UserError, match="not a saved BM25 index"):
        BM25.load(tmp_path / "elsewhere")


def test_chinese_falls_into_words():
    index = BM25.of(["战国无双由光荣开发", "锣鼓经是戏曲音乐"])
    assert index.segment == "chinese"
    assert index.search(["光荣"], 1)[0].tolist() == [[0]]
