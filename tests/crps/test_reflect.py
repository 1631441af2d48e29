"""Critiques: the failing step found and quoted, planted errors found, unfounded critiques refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.crps import pairs, reflect
from raylm.crps.config import PairConfig
from raylm.crps.reflect import FailureMode, Pivot

QUESTION = "Tom has 13 pens, gives 4 away and buys 2. How many has he?"
GOOD = "13 - 4 = 9\n9 + 2 = 11\nAnswer: 11"


def read(tree, negative, good=GOOD, question=QUESTION):
    """The first pair of a right and a wrong response, and its critique."""
    pair = pairs.select(tree(question, [(good, "correct"), (negative, "wrong")]), PairConfig(), 0)[0]
    critique = reflect.StructuralAnalyst().critique(pair)
    assert reflect.faults(critique, pair) == []
    assert reflect.pivot_error(critique, pair) == 0
    return pair, critique


@pytest.mark.parametrize(
    ("negative", "expected"),
    [
        ("13 - 4 = 9\n9 + 2 = 12\nAnswer: 12", ("arithmetic", 1, "9 + 2 = 12", "9 + 2 = 11")),
        ("4 + 2 = 6\n13 - 6 = 8\nAnswer: 8", ("arithmetic", 1, "13 - 6 = 8", "13 - 6 = 7")),
        ("8 = 13 - 4\n8 + 2 = 10\nAnswer: 10", ("arithmetic", 0, "8 = 13 - 4", "9 = 13 - 4")),
        ("13 - 4 = 9\nAnswer: 9", ("premature_answer", 1, "Answer: 9", "9 + 2 = 11")),
        ("13 - 7 = 6\n6 + 2 = 8\nAnswer: 8", ("misread", 0, "13 - 7 = 6", "13 - 4 = 9")),
        ("13 + 4 = 17\n17 + 2 = 19\nAnswer: 19", ("wrong_theorem", 0, "13 + 4 = 17", "13 - 4 = 9")),
        ("13 - 2 = 11\n11 - 2 = 9\nAnswer: 9", ("missing_case", 0, "13 - 2 = 11", "use 4")),
        ("13 - 2 = 11\n11 + 4 = 15\nAnswer: 15", ("misread", 0, "13 - 2 = 11", "13 - 4 = 9")),
        ("13 - 4 = 9\n9 + 2 = 11\nAnswer: 12", ("misread", 2, "Answer: 12", "Answer: 11")),
        ("He has fewer.\nAnswer: 9", ("misread", 0, "He has fewer.", "13 - 4 = 9")),
    ],
)
def test_the_failing_step_is_named_quoted_and_mended(tree, negative, expected):
    kind, step, quote, fix = expected
    pair, critique = read(tree, negative)
    assert critique.failure_modes[0] == FailureMode(step_index=step, type=kind, quote=quote, fix=fix)
    assert critique.divergence_step_index == pair.shared
    assert critique.contrast_type == "hard"
    assert pair.rescue.text.strip() in critique.global_analysis


def test_a_longer_correct_path_is_inefficient(tree):
    grown = tree(QUESTION, [(GOOD, "correct"), ("4 - 2 = 2\n13 - 2 = 11\nSo 11.\nAnswer: 11", "correct")])
    (pair,) = pairs.select(grown, PairConfig(), 0)
    critique = reflect.StructuralAnalyst().critique(pair)
    assert [mode.type for mode in critique.failure_modes] == ["inefficient"]
    assert critique.contrast_type == "soft"
    assert reflect.faults(critique, pair) == []


def test_the_fall_in_value_is_told(tree):
    bad = "13 - 4 = 9\nHe buys two.\nAnswer: 9"
    _, critique = read(tree, bad)
    assert "the mean reward falls most, by 0.50, at step 1" in critique.critique_b
    assert "mean reward 1.00 below one, 0.00 below the other" in critique.pivots[0].why


def test_two_failures_come_with_the_surest_first(tree):
    _, critique = read(tree, "13 + 4 = 17\n17 + 2 = 20\nAnswer: 20")
    assert [mode.type for mode in critique.failure_modes] == ["arithmetic", "wrong_theorem"]


@settings(deadline=None)
@given(st.lists(st.integers(2, 90), min_size=3, max_size=6), st.integers(0, 4), st.integers(-9, 9).filter(bool))
def test_a_planted_error_is_found_at_its_step(grown_sum, terms, at, slip):
    at %= len(terms) - 1
    (pair,) = pairs.select(grown_sum(terms, [(at, slip)]), PairConfig(), 0)
    critique = reflect.StructuralAnalyst().critique(pair)
    mode = critique.failure_modes[0]
    assert (critique.divergence_step_index, mode.step_index, mode.type) == (at, at, "arithmetic")
    assert mode.fix == pair.anchor.steps[at].strip()
    assert reflect.faults(critique, pair) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"divergence_step_index": 9}, "divergence_step_index 9"),
        ({"divergence_step_index": -1}, "divergence_step_index -1"),
        ({"pivots": [Pivot(step_a=7, step_b=0, why="")]}, "pivot (7, 0)"),
        ({"pivots": [Pivot(step_a=0, step_b=-1, why="")]}, "pivot (0, -1)"),
        ({"pivots": []}, "at least one pivot"),
        ({"failure_modes": []}, "one failure mode"),
        ({"failure_modes": [FailureMode(step_index=1, type="misread", quote="not there", fix="")]}, "does not say"),
        ({"failure_modes": [FailureMode(step_index=0, type="misread", quote="9 + 2 = 12", fix="")]}, "does not say"),
        ({"failure_modes": [FailureMode(step_index=1, type="misread", quote=" ", fix="")]}, "does not say"),
        ({"failure_modes": [FailureMode(step_index=9, type="misread", quote="9", fix="")]}, "out of range"),
        ({"contrast_type": "soft"}, "contrast_type"),
    ],
)
def test_an_unfounded_critique_is_refused(tree, change, word):
    pair, critique = read(tree, "13 - 4 = 9\n9 + 2 = 12\nAnswer: 12")
    (found,) = reflect.faults(critique.model_copy(update=change), pair)
    assert word in found


@pytest.mark.parametrize(("key", "value"), [("confidence", 1.5), ("contrast_type", "other"), ("surprise", 1)])
def test_a_malformed_critique_is_refused(tree, key, value):
    _, critique = read(tree, "13 - 4 = 9\n9 + 2 = 12\nAnswer: 12")
    with pytest.raises(ValueError, match=key):
        reflect.Critique.model_validate({**critique.model_dump(), key: value})


def test_a_digest_is_that_of_the_content(tree):
    _, first = read(tree, "13 - 4 = 9\n9 + 2 = 12\nAnswer: 12")
    _, other = read(tree, "13 - 4 = 9\n9 + 2 = 13\nAnswer: 13")
    assert first.digest() == reflect.Critique.model_validate_json(first.model_dump_json()).digest()
    assert first.digest() != other.digest()
