"""Forms: numbers are masked, what wins within questions is learned over questions, and difficulty drops out."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.crps import forms, pairs
from raylm.crps.forms import ENOUGH, Forms
from tests.crps.conftest import tree_of

SOUND, LUCKY = "3 + 4 = 7\n7 + 5 = 12\nAnswer: 12", "Answer: 12"


def grown(number, outcomes):
    """A tree on its own numbers; outcomes are (form, right) with forms `steps` and `guess`."""
    a, b, c = number + 3, number + 4, 5
    responses = []
    for place, (kind, right) in enumerate(outcomes):
        total = a + b + c + (0 if right else place + 1)
        body = f"{a} + {b} = {a + b}\n{a + b} + {c} = {total}\n" if kind == "steps" else ""
        responses.append((f"{body}Answer: {total}", "correct" if right else "wrong"))
    return tree_of(f"{a} + {b} + {c}?", responses, answer=str(a + b + c), id=f"t{number}", problem_id=f"p{number}")


def world(count=120, seed=0, steps=0.7, guess=0.2):
    """Trees with three tries of each form, right at these rates."""
    draw = random.Random(seed)
    rates = {"steps": steps, "guess": guess}
    return [
        grown(number, [(kind, draw.random() < rate) for kind, rate in rates.items() for _ in range(3)])
        for number in range(count)
    ]


def test_numbers_are_masked():
    assert forms.form("12 - 5 = 7.5\nAnswer: 1,200") == "# - # = #\nanswer: #"


def test_the_form_that_wins_over_many_trees_ranks_first_even_where_luck_chose_otherwise():
    learned = Forms.fit(world())
    sound, lucky = learned.scores([SOUND, LUCKY])
    assert sound > lucky
    unlucky = grown(500, [("guess", True), ("steps", True), ("steps", False), ("guess", False)])
    assert [path.length for path in pairs.correct_paths(unlucky)] == [1, 3]  # the shortest is the guess
    assert [path.length for path in pairs.correct_paths(unlucky, rank=learned.rank)] == [3, 1]


def test_what_wins_is_learned_and_not_what_is_long():
    sound, lucky = Forms.fit(world(steps=0.2, guess=0.7)).scores([SOUND, LUCKY])
    assert lucky > sound


def test_the_difficulty_of_questions_drops_out():
    # Easy questions are all answered in steps and hard ones all guessed: no question shows one against the other.
    easy = [grown(n, [("steps", True)] * 5 + [("steps", False)]) for n in range(60)]
    hard = [grown(n, [("guess", True)] + [("guess", False)] * 5) for n in range(60, 120)]
    sound, lucky = Forms.fit([*easy, *hard]).scores([SOUND, LUCKY])
    assert abs(sound - lucky) < 1e-6


@given(st.integers(0, 5))
def test_the_same_trees_teach_the_same_in_every_process(seed):
    first, again = Forms.fit(world(40), seed), Forms.fit(iter(world(40)), seed)
    assert first == again
    assert Forms.of_json(first.as_json()) == first


def test_too_little_teaches_nothing():
    few = Forms.fit(world(3))
    assert few.learned_from < ENOUGH
    assert few.weights == {}
    assert few.scores([SOUND, LUCKY]) == [0.0, 0.0]
    assert Forms.fit([]).learned_from == 0


@pytest.mark.parametrize("keep", [0.25, 0.6])
def test_a_share_of_the_anchors_lies_above_the_floor(keep):
    trees = world(200)
    learned = Forms.fit(trees, keep=keep)
    best = [found[0] for tree in trees if (found := pairs.correct_paths(tree, rank=learned.rank))]
    kept = [path for path in best if not learned.poor(path)]
    assert len(kept) >= keep * len(best)
    assert len(kept) < len(best)
    everything = Forms.fit(trees)
    assert not any(everything.poor(path) for path in best)


def test_pairs_are_bounded_however_many_trees_there_are(monkeypatch):
    monkeypatch.setattr(forms, "LIMIT", 100)
    many = world(400)
    assert ENOUGH < Forms.fit(many, count=len(many)).learned_from < 160
    assert Forms.fit(many[:20], count=20).learned_from <= 100
