"""Every kind of soft labels comes out of one function as distributions with the gold label on top."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raylm.config import build
from raylm.errors import UserError
from raylm.softlabels import distributions
from raylm.softlabels.config import SoftLabelConfig
from raylm.softlabels.keywords import KeywordTable
from raylm.softlabels.targets import make
from raylm.softlabels.words import Vocabulary

TEXTS = [
    f"{colour} {thing}" for colour in ("red", "dark red", "blue", "pale blue") for thing in ("sea", "sky", "apple")
]
GOLD = np.array([0] * 6 + [1] * 6)
DRAWS = np.random.default_rng(0)
VECTORS = DRAWS.normal(size=(12, 4)) + 3 * GOLD[:, None]


@pytest.mark.parametrize("kind", ["none", "uniform", "prior", "keyword", "centroid", "glle", "propagation"])
def test_every_kind_is_a_distribution_with_the_gold_label_on_top(kind):
    found = make(SoftLabelConfig(kind=kind, neighbours=3), (TEXTS, GOLD), (TEXTS[:3], GOLD[:3]), 3, vectors=VECTORS)
    np.testing.assert_allclose(found.rows.sum(1), 1)
    assert (found.rows[np.arange(12), GOLD] >= found.rows.max(1) - 1e-12).all()
    assert (kind in ("keyword", "centroid")) == (found.table is not None)


def test_words_in_common_bring_labels_together():
    texts = ["card lost", "card stolen", "card gone", "loan rate", "loan fee", "card fee"]
    gold = np.array([0, 0, 1, 2, 2, 1])
    rows = make(SoftLabelConfig(kind="keyword", temperature=1.0), (texts, gold), ([], np.array([])), 3).rows
    assert rows[0, 1] > 2 * rows[0, 2]  # "card" is a word of the second label, not of the third


def test_a_text_is_taken_out_of_its_label_by_similarity_too():
    texts, gold = ["a b", "a c", "d e", "d f g"], [0, 0, 1, 1]
    table = KeywordTable.of(texts, gold, 2, Vocabulary.of(texts, str.split))
    left = table.similarities()
    for row in range(4):
        rest = [n for n in range(4) if n != row]
        frequencies = np.log(5 / (1 + table._frequency())) + 1
        vectors = table.texts.toarray() * frequencies
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for label in (0, 1):
            mean = sum(vectors[n] for n in rest if gold[n] == label)
            assert left[row, label] == pytest.approx(vectors[row] @ mean / np.linalg.norm(mean))


def test_permutation_and_share_apply_to_all_kinds():
    config = SoftLabelConfig(kind="keyword", permute=True, share=0.4, temperature=1.0)
    rows = make(config, (TEXTS, GOLD), ([], np.array([])), 3, seed=1).rows
    plain = make(config.model_copy(update={"permute": False}), (TEXTS, GOLD), ([], np.array([])), 3).rows
    np.testing.assert_allclose(np.sort(rows, 1), np.sort(plain, 1))
    assert (rows[np.arange(12), GOLD] >= 0.6).all()


def test_a_share_above_one_is_refused():
    with pytest.raises(ValidationError, match="single_head takes a share"):
        SoftLabelConfig(alpha=2.0)


def test_a_centred_label_of_many_texts_is_not_favoured():
    """Texts of the tail share a common word with all texts of the head: scores alone point there."""
    texts = [f"card question {n}" for n in range(40)] + ["card lost", "loan fee", "loan rate"]
    gold = np.array([0] * 40 + [1, 2, 2])
    held = (["card lost", "loan fee", "card question"], np.array([1, 2, 0]))
    masses = []
    for centre in (False, True):
        config = build(SoftLabelConfig, {"kind": "keyword", "centre": centre, "temperature": 1.0})
        rows = make(config, (texts, gold), held, 3).rows
        np.testing.assert_allclose(rows.sum(1), 1.0)
        masses.append(rows[gold != 0, 0].mean())
    assert masses[1] < masses[0]


@given(st.integers(0, 1_000), st.integers(2, 6), st.floats(0.05, 3.0))
def test_balanced_labels_have_the_sums_of_uniform_ones_and_keep_the_order(seed, labels, spread):
    """Rows sum to 1, columns to what uniform smoothing gives; of two texts with one gold label the likelier gives more
    to a label in proportion to all it gives."""
    draws = np.random.default_rng(seed)
    gold = np.concatenate([np.arange(labels), draws.integers(0, labels, 30) ** 2 // labels])
    soft = distributions.from_scores(draws.normal(size=(len(gold), labels)), spread)
    found, plain = distributions.balanced(soft, gold), distributions.uniform(len(gold), labels)
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-9)
    np.testing.assert_allclose(found[np.arange(len(gold)), gold], 1 / labels)
    np.testing.assert_allclose(found.sum(0), plain.sum(0), rtol=0.05)
    if labels > 2:  # odds between two labels that are not gold differ between texts as they did before
        same = np.flatnonzero(gold == 0)[:2]
        shown = np.maximum(soft, distributions.LEAST)
        before, after = (np.log(rows[same][:, 1]) - np.log(rows[same][:, 2]) for rows in (shown, found))
        assert np.ptp(after) == pytest.approx(np.ptp(before), rel=1e-3, abs=1e-6)


def test_balanced_hard_labels_are_refused():
    with pytest.raises(ValidationError, match="balance=true is for soft labels"):
        SoftLabelConfig(balance=True)


def test_the_published_temperature_is_the_mean_length_and_needs_words():
    config = build(SoftLabelConfig, {"kind": "keyword", "temperature": "length", "segment": "spaces", "guard": False})
    texts, gold = ["a b c", "d", "a d", "e f"], np.array([0, 1, 0, 1])
    made = make(config, (texts, gold), (texts, gold), 2)
    assert made.temperature == 2.0
    plain = make(build(SoftLabelConfig, {**config.model_dump(), "guard": True}), (texts, gold), (texts, gold), 2)
    assert (plain.rows[np.arange(4), gold] == plain.rows.max(1)).all()
    assert (made.rows[np.arange(4), gold] < made.rows.max(1)).any()
    with pytest.raises(UserError, match="temperature=length is for texts' words"):
        make(build(SoftLabelConfig, {"kind": "distillation", "teacher": "x", "temperature": "length"}),
             (texts, gold), (texts, gold), 2, taught=(np.zeros((4, 2)), np.zeros((4, 2))))  # fmt: skip


def test_a_teacher_gives_its_distribution_at_the_fitted_temperature():
    gold = np.array([0, 1, 2, 0])
    logs = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.5, 0.3, 0.2]]))
    texts = ["a", "b", "c", "d"]
    config = build(SoftLabelConfig, {"kind": "distillation", "teacher": "x", "temperature": 1.0})
    made = make(config, (texts, gold), (texts, gold), 3, taught=(logs, logs))
    np.testing.assert_allclose(made.rows, np.exp(logs))
    with pytest.raises(UserError, match="go together"):
        build(SoftLabelConfig, {"kind": "distillation"})
