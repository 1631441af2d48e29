"""Samples that ask the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.ilp.config import ProbeConfig, RuleConfig
from raylm.ilp.items import make
from raylm.ilp.neighbours import Pair, clusters, content, nearest_places, same_questions, surroundings


def items_of(*pairs):
    rows = [
        {"id": str(n), "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for n, (q, a) in enumerate(pairs)
    ]
    return make(rows, ProbeConfig())


def unit(rows):
    vectors = np.asarray(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_paraphrases_with_other_answers_contradict_and_other_names_do_not():
    items = items_of(
        ("What is the capital of Peru?", "Lima"), ("Tell me the capital of Peru.", "Cusco"),
        ("What is the capital of Chad?", "Lagos"), ("Please give the capital of Peru", "lima."),
    )  # fmt: skip
    pairs, nearest = same_questions(items, unit([[1, 0.01 * n] for n in range(4)]), RuleConfig())
    assert {(pair.left, pair.right, pair.agrees) for pair in pairs} == {(0, 1, False), (0, 3, True), (1, 3, False)}
    assert (nearest > 0.99).all()


def test_numbers_must_agree():
    assert content("What is 3 + 4?") != content("What is 3 + 5?")
    assert content("How many apples do 3 boys have?") == content("Tell me the apple of 3 boy")


def test_without_normal_forms_nothing_contradicts():
    long = "word " * 30
    pairs, _ = same_questions(items_of(("q", long), ("q", long + "x")), unit([[1, 0], [1, 0]]), RuleConfig())
    assert not pairs


def test_fewer_samples_than_neighbours_are_no_error():
    assert same_questions(items_of(("q", "a")), unit([[1, 0]]), RuleConfig())[0] == []
    assert nearest_places(unit([[1, 0], [0, 1]]), [1], 50) == [[0]]
    assert nearest_places(unit([[1, 0]]), [], 5) == []


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 30), st.integers(0, 99))
def test_the_index_finds_what_all_pairs_would(count, seed):
    vectors = unit(np.random.default_rng(seed).normal(size=(count, 6)))
    items = items_of(*(("same", str(n)) for n in range(count)))
    pairs, nearest = same_questions(items, vectors, RuleConfig(neighbours=count, similarity=0.5))
    similar = vectors @ vectors.T
    expected = {(i, j) for i in range(count) for j in range(i + 1, count) if similar[i, j] >= 0.5}
    assert {(pair.left, pair.right) for pair in pairs} == expected
    np.fill_diagonal(similar, -1)
    assert nearest == pytest.approx(similar.max(1).clip(0, 1), abs=1e-6)


def test_clusters_are_what_pairs_connect():
    pairs = [Pair(3, 5, 1, False), Pair(1, 2, 1, True), Pair(2, 3, 1, False), Pair(7, 8, 1, False)]
    assert clusters(pairs) == [[1, 2, 3, 5], [7, 8]]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(0, 5), st.integers(0, 9))
def test_a_screen_looks_at_all_that_can_contradict_what_it_looks_at(topics, count, seed):
    items = items_of(*((f"what is the height of hill {topic}", str(n)) for n, topic in enumerate(topics)))
    rng = np.random.default_rng(seed)
    wanted = {items[place].id for place in rng.choice(len(items), 1 + len(items) // 4, replace=False)}
    near = surroundings(items, wanted, RuleConfig(), count, seed)
    asked = {topics[int(name)] for name in wanted}
    alike = {place for place, topic in enumerate(topics) if topic in asked}
    if len(wanted) < len(items):
        assert alike <= set(near)
        assert len(near) == min(len(items), len(alike) + count)
    vectors = unit(np.ones((len(items), 3)))
    rules = RuleConfig(neighbours=len(items))
    whole, _ = same_questions(items, vectors, rules)
    part, _ = same_questions([items[place] for place in near], vectors[: len(near)], rules)
    found = {(near[pair.left], near[pair.right]) for pair in part}
    assert {(pair.left, pair.right) for pair in whole if {pair.left, pair.right} & alike} <= found


def test_where_words_do_not_tell_all_are_looked_at():
    items = items_of(("a hill", "1"), ("a lake", "2"), ("a tree", "3"))
    assert surroundings(items, {"0"}, RuleConfig(same_words=False), 0, 0) == [0, 1, 2]
    assert surroundings(items, {"0"}, RuleConfig(), 0, 0) == [0]
