"""Samples as the probes see them."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.ilp.config import DiagnoseConfig, ProbeConfig
from raylm.ilp.items import chance_floor, choices, distractors, make, normal_form, screen
from raylm.ilp.rouge import rouge_l


def chat(name, question, answer, **more):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": name, "messages": turns, **more}


def items_of(*answers, **changes):
    return make([chat(str(n), f"question {n}", answer) for n, answer in enumerate(answers)], ProbeConfig(**changes))


def sizes(items):
    return {item.answer: len(item.answer) for item in items}


def far(items):
    return {item.id: [n for n in range(len(items)) if n != place] for place, item in enumerate(items)}


def test_a_sample_is_checked_by_what_its_answer_is():
    stated, short, long = items_of("2 + 2 = 4\nAnswer: 4", "New York", "word " * 30)
    assert [item.check for item in (stated, short, long)] == ["answer", "exact", "rouge"]
    assert (stated.normal, short.normal, long.normal) == ("4", "new york", "")
    assert stated.problem().answer == "4"


@pytest.mark.parametrize(("left", "right"), [("1,000", "1000"), ("Paris.", "paris"), ("$5", "5.0"), ("1/2", "0.5")])
def test_equal_answers_have_equal_normal_forms(left, right):
    assert normal_form(left, "exact") == normal_form(right, "exact")


def test_distractors_are_wrong_distinct_and_of_the_same_kind():
    items = items_of("10", "12", "Paris", "paris.", "10.0", "7", "Rome", "a much longer answer of words")
    found = distractors(items, items, far(items), sizes(items), DiagnoseConfig())
    assert sorted(found["0"]) == ["12", "7"]
    assert set(found["2"]) == {"Rome", "a much longer answer of words"}
    for item in items:
        normals = [normal_form(text, "exact") for text in found[item.id]]
        assert item.normal not in normals
        assert len(set(normals)) == len(normals)


def test_distractors_come_from_the_nearest_questions_first_and_are_near_in_length():
    items = items_of(*(f"{'x' * length}{letter}" for length in (3, 9) for letter in "abcdefgh"))
    near = far(items) | {"0": [*range(8, 16), *range(1, 8)]}
    config = DiagnoseConfig(probe=ProbeConfig(distractors=2))
    found = distractors(items, items, near, sizes(items), config)
    assert all(len(text) == 10 for text in found["0"])
    assert all(len(text) == 4 for text in found["1"])


def test_a_choice_shows_distinct_distractors_and_a_draw_depends_on_the_seed_alone():
    item = items_of("a")[0]
    draws = choices(item, 6, DiagnoseConfig())
    assert len(draws) == 5
    assert all(len(set(draw)) == 3 and max(draw) < 6 for draw in draws)
    assert draws == choices(item, 6, DiagnoseConfig())
    assert draws != choices(item, 6, DiagnoseConfig(seed=1))
    assert choices(item, 2, DiagnoseConfig())[0] == [0, 1]
    assert choices(item, 0, DiagnoseConfig()) == [[]] * 5


def test_the_chance_floor_is_that_of_the_method_page():
    assert chance_floor(4, 5, 0.2) == pytest.approx(0.75**5)
    assert round(chance_floor(4, 5, 0.2), 2) == 0.24


@given(st.integers(2, 5), st.integers(1, 5), st.floats(0.05, 1.0))
def test_the_chance_floor_counts_all_guesses(options, evaluations, below):
    guesses = list(itertools.product(range(options), repeat=evaluations))
    failed = sum(sum(g == 0 for g in guess) / evaluations < below - 1e-12 for guess in guesses)
    assert chance_floor(options, evaluations, below) == pytest.approx(failed / len(guesses))


def test_a_screen_is_a_draw_in_order():
    items = items_of(*"abcdefghij")
    chosen = screen(items, 4, seed=3)
    assert len({item.id for item in chosen}) == 4
    assert [int(item.id) for item in chosen] == sorted(int(item.id) for item in chosen)
    assert screen(items, 0, 3) == screen(items, 99, 3) == items


def common(left, right):
    """Length of the longest common subsequence, by trying all subsequences."""
    for size in range(min(len(left), len(right)), 0, -1):
        for places in itertools.combinations(range(len(left)), size):
            rest = iter(right)
            if all(any(left[place] == word for word in rest) for place in places):
                return size
    return 0


@given(st.lists(st.sampled_from("abc"), max_size=7), st.lists(st.sampled_from("abc"), max_size=7))
def test_rouge_is_the_f_measure_of_the_longest_common_subsequence(left, right):
    found = rouge_l(" ".join(left), " ".join(right))
    if not left or not right:
        assert found == 0
        return
    size = common(left, right)
    precision, recall = size / len(left), size / len(right)
    expected = 2 * precision * recall / (precision + recall) if size else 0.0
    assert math.isclose(found, expected)
