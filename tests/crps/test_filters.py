"""What a chain must pass: faults by name, leaks found and clean texts kept, copies found and different texts kept."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raylm.config import build
from raylm.crps.config import FilterConfig
from raylm.crps.filters import Contamination, Copies, fault
from raylm.errors import UserError

FARMER = "A farmer has seven cows and buys five more cows at the market; how many cows has he now?"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 + 1 = 2\nAnswer: 2", ""),
        ("1 + 1 = 2", "final_answers"),
        ("Answer: 2\nAnswer: 2", "final_answers"),
        ("The wrong solution says 3.\nAnswer: 2", "meta_language"),
        ("Path A adds first.\nAnswer: 2", "meta_language"),
        ("This trajectory adds first.\nAnswer: 2", "meta_language"),
        ("Unlike step 3 of the other path, add.\nAnswer: 2", "meta_language"),
        ("The gold answer is near.\nAnswer: 2", "meta_language"),
        ("He takes a path a mile long.\nAnswer: 2", ""),
        ("In step 3 of the recipe he adds 2 eggs.\nAnswer: 2", ""),
        ("1 + 1 = 3\nAnswer: 2", "arithmetic"),
        ("a\n\nb\nc\nAnswer: 2", "steps"),
        ("a\n\nb\nAnswer: 2", ""),
    ],
)
def test_faults_are_named(text, reason):
    assert fault(text, "", FilterConfig(max_steps=3)) == reason


def test_words_of_the_question_are_no_meta_language():
    text = "The trajectory of the ball is a parabola.\nAnswer: 2"
    assert fault(text, "", FilterConfig()) == "meta_language"
    assert fault(text, "What is the trajectory of a ball?", FilterConfig()) == ""


def test_arithmetic_may_be_left_unchecked_and_short_chains_refused():
    assert fault("1 + 1 = 3\nAnswer: 2", "", FilterConfig(check_arithmetic=False)) == ""
    assert fault("Answer: 2", "", FilterConfig(min_steps=2)) == "steps"


def test_limits_that_nothing_passes_are_refused():
    with pytest.raises(UserError, match="min_steps 9 is above max_steps 3"):
        build(FilterConfig, {"min_steps": 9, "max_steps": 3})


def test_planted_leaks_are_found_and_clean_texts_kept():
    leaks = Contamination([("farm", FARMER), ("sums", "2 + 2 = ?")], ngram=13)
    assert leaks.found(FARMER.upper())
    assert leaks.found(f"Consider this: {FARMER} He has 12.")
    assert leaks.found("2 + 2 =")
    assert not leaks.found("2 + 3 = ?")
    assert not leaks.found("Add 2 + 2 = 4 and go on.")  # a short question counts as a whole only
    assert not leaks.found("A farmer has seven cows and buys five more sheep at the fair")


WORDS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40)


@settings(deadline=None)
@given(WORDS, st.integers(0, 30), WORDS, WORDS, st.integers(2, 13))
def test_exactly_the_texts_that_share_an_n_gram_are_found(question, start, before, after, size):
    leaks = Contamination([("x", " ".join(question))], ngram=size)
    piece = question[start : start + size]
    if len(piece) == size:
        assert leaks.found(" ".join([*before, *piece, *after]))
    text = before + after
    grams = {tuple(question[at : at + size]) for at in range(len(question) - size + 1)}
    shared = any(tuple(text[at : at + size]) in grams for at in range(len(text) - size + 1))
    assert leaks.found(" ".join(text)) == (shared or text == question)


def test_a_template_that_all_questions_of_a_source_share_is_no_leak():
    ask = "State the final answer to the following arithmetic problem: 9 + 7 - {} ="
    many = [("sums", ask.format(number)) for number in range(20, 28)]
    assert not Contamination(many, 13).found(ask.format(5))
    assert Contamination(many, 13).found(ask.format(20))
    assert Contamination(many[:2], 13).found(ask.format(5))  # two questions make no template
    long = [
        ("farm", FARMER.replace("seven", word))
        for word in ["two", "three", "four", "six", "eight", "nine", "ten", "twenty"]
    ]
    assert Contamination(long, 8).found(FARMER.replace("seven", "six"))
    assert not Contamination(long, 8).found(FARMER.replace("seven", "forty"))


def test_copies_are_found_and_different_texts_kept():
    text = "First add the apples and the pears of both baskets together, which makes 12.\nAnswer: 12"
    copies = Copies(0.8)
    assert copies.reason(text) == ""
    assert copies.reason(text.replace("First add", "First, ADD")) == "duplicate"
    assert copies.reason(text.replace("First add", "Now add")) == ""
    long = " ".join(f"word{number}" for number in range(60))
    assert copies.reason(long) == ""
    assert copies.reason(long + " more") == "near_duplicate"
    assert copies.reason("Count the baskets one by one and double what is in each of them.\nAnswer: 12") == ""


def triples(text):
    words = ["", *text.split(), ""]
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}


@settings(deadline=None)
@given(WORDS, st.integers(0, 39), st.sampled_from("abcdefghxyz"), st.floats(0.1, 1.0))
def test_near_copies_are_those_above_the_threshold(words, place, word, threshold):
    changed = [*words[:place], word, *words[place:]]
    first, second = " ".join(words), " ".join(changed)
    assume(first != second)
    a, b = triples(first), triples(second)
    copies = Copies(threshold)
    assert copies.reason(first) == ""
    near = len(a & b) > threshold * len(a | b)
    assert (copies.reason(second) == "near_duplicate") == near
