"""Keyword relevance: the matrix form is the loop form, and a text does not vote for itself."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.errors import UserError
from raylm.softlabels.keywords import K1, K2, B, KeywordTable
from raylm.softlabels.words import Vocabulary, segmenter

WORDS = list("abcdef")
worlds = st.integers(2, 4).flatmap(
    lambda labels: st.lists(
        st.tuples(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), st.integers(0, labels - 1)),
        min_size=labels, max_size=12,
    ).map(lambda rows: (labels, rows))
)  # fmt: skip


def table(rows, labels):
    texts = [" ".join(words) for words, _ in rows]
    return KeywordTable.of(texts, [label for _, label in rows], labels, Vocabulary.of(texts, str.split))


def by_loop(rows, labels, words, others, average):
    """Scores of one text by the formulae, against the texts `others`."""
    own = [[word for text, label in others if label == i for word in text] for i in range(labels)]
    scores = []
    for tokens in own:
        norm = K1 * (1 - B + B * len(tokens) / average)
        total = 0.0
        for word in set(words):
            holders, frequency = sum(word in label for label in own), sum(word in text for text, _ in others)
            if not holders or not frequency:
                continue
            tf, f = tokens.count(word), words.count(word)
            wlr = tf * K1 / (tf + norm) * (math.log(labels / holders) + 1) if tf else 0.0
            total += wlr * (math.log(len(others) / frequency) + 1) * f * K2 / (f + K2)
        scores.append(total)
    return scores


@settings(deadline=None)
@given(worlds)
def test_matrices_give_what_the_formulae_say(world):
    labels, rows = world
    found = table(rows, labels)
    average = max(1.0, sum(len(words) for words, _ in rows) / labels)
    expected = [by_loop(rows, labels, words, rows, average) for words, _ in rows]
    np.testing.assert_allclose(found.scores(leave_one_out=False), expected, atol=1e-9)
    left = [by_loop(rows, labels, words, rows[:n] + rows[n + 1 :], average) for n, (words, _) in enumerate(rows)]
    np.testing.assert_allclose(found.scores(), left, atol=1e-9)


def test_a_text_does_not_vote_for_itself():
    rows = [(["own", str(n)], n % 2) for n in range(6)]
    found = table(rows, 2)
    assert (found.scores() == found.scores()[:, ::-1]).mean() < 1 or found.scores().max() >= 0
    published = found.scores(leave_one_out=False)
    gold = np.array([n % 2 for n in range(6)])
    lead = published[np.arange(6), gold] - published[np.arange(6), 1 - gold]
    assert (lead > 0.5).all()  # a word that only this text has makes its own label win
    honest = found.scores()
    assert (np.abs(honest[:, 0] - honest[:, 1]) < 0.2).all()


def test_other_texts_are_scored_against_all_and_unknown_words_do_not_count():
    found = table([(["red", "apple"], 0), (["blue", "sea"], 1)], 2)
    counts = found.vocabulary.counts(["a red red apple", "nothing known"])
    scores = found.scores(counts)
    assert scores[0, 0] > scores[0, 1] == 0
    assert (scores[1] == 0).all()


def test_keywords_of_a_label_are_its_own_and_frequent_ones():
    rows = [(["the", "card", "card"], 0), (["the", "card"], 0), (["the", "loan"], 1)]
    assert [word for word, _ in table(rows, 2).keywords(0, 1)] == ["card"]


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [("words", "Don't STOP, at 9", ["don't", "stop", "at", "9"]), ("spaces", "A b, c", ["A", "b,", "c"])],
)
def test_texts_fall_into_words(kind, text, words):
    assert segmenter(kind)(text) == words


def test_chinese_is_recognised_and_segmented():
    pytest.importorskip("jieba")
    split = segmenter("auto", ["今天天气很好，我们去公园。"])
    assert "公园" in split("我们去公园。")
    assert "。" not in split("我们去公园。")


def test_chinese_without_its_segmenter_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(UserError, match="pip install jieba"):
        segmenter("auto", ["今天天气很好"])
