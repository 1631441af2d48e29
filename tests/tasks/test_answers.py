"""What is put into a response comes out of it, whatever stands around it; a number is one however it is written."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.tasks.answers import (
    extract_answer,
    final_answers,
    gold_text,
    normalize_question,
    normalize_text,
    parse_number,
)

PROSE = st.text(alphabet=st.sampled_from("abc dfgh\n.,(){}\\$*#-:=0123456789"), max_size=200)
NUMBERS = st.decimals(min_value=-(10**9), max_value=10**9, places=3, allow_nan=False)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("2 + 3 = 5\nAnswer: 5", "5"),
        ("Answer: 5\nNo, wait.\nAnswer: 6", "6"),
        ("**Answer:** 42.", "42"),
        ("**Final Answer**: $\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
        ("### Answer: 7", "7"),
        ("final answer is 12", "12"),
        ("Answer = -5", "-5"),
        ("Answer:\n1 2\n3 4\n\nThat was it.", "1 2\n3 4"),
        ("ANSWER: The cat sat.", "The cat sat."),
        ("Answer: 5\n\\boxed{6}", "5"),
        ("so \\boxed{a{b}c} it is", "a{b}c"),
        ("\\boxed{1} and then \\boxed{2", "1"),
        ("\\boxed{3}\n#### 4", "3"),
        ("3 + 4\n#### 1,234", "1,234"),
        ("So the answer is $18.50. Good.", "$18.50"),
        ("The answer is: **12**.", "12"),
        ("It costs 3 and then 4.", "4"),
        ("9-4=5", "5"),
        ("no idea", "no idea"),
        ("", ""),
        ("Answer:", ""),
        ("3 + 4 = 7\nAnswer:", ""),
        ("3 + 4 = 7\n$\\boxed{", ""),
        ("\\boxed{}", ""),
        (" \n\t\n", ""),
    ],
)
def test_precedence_of_the_ways_to_answer(response, answer):
    assert extract_answer(response) == answer


@given(PROSE, NUMBERS, st.sampled_from(["Answer: {}", "**Answer:** {}", "Final answer: ${}$", "answer: {}."]))
def test_an_answer_line_at_the_end_is_found_behind_any_prose(prose, number, line):
    assert extract_answer(f"{prose}\n" + line.format(number)) == str(number)


@given(st.text(alphabet="ab{}\\ +123", max_size=40).filter(lambda text: _balanced(text) and text.strip() == text != ""))
def test_a_boxed_answer_keeps_its_nested_braces(content):
    if "boxed" in content:
        return
    assert extract_answer(f"Thus $\\boxed{{{content}}}$ holds") == content


@given(st.text(max_size=300))
def test_any_text_is_read_without_an_error(text):
    assert extract_answer(text) == extract_answer(text).strip()
    assert final_answers(text) >= 0
    parse_number(text)
    normalize_text(text)
    assert normalize_question(normalize_question(text)) == normalize_question(text)


@pytest.mark.parametrize("piece", ["\n", "answer ", "answer is ", "\\boxed{", "{", "1,", " ", "*", "#", "$", "1/", "-"])
def test_long_repetitions_are_read_in_linear_time(piece):
    text = piece * (400_000 // len(piece))
    extract_answer(text)  # the test's time limit is what a quadratic pattern meets
    final_answers(text)
    parse_number(text)


@pytest.mark.parametrize(
    ("response", "count"),
    [
        ("Answer: 5", 1),
        ("Answer: \\boxed{5}", 1),
        ("Answer: 5\nAnswer: 5", 2),
        ("Answer: 5\n#### 5", 2),
        ("The answer is 5.\nAnswer: 5", 1),
        ("The answer is 5. No, the answer is 6.", 2),
        ("3 + 4 = 7", 0),
    ],
)
def test_final_answers_counts_lines_that_state_one(response, count):
    assert final_answers(response) == count


@given(NUMBERS)
def test_a_number_is_the_same_in_every_dress(number):
    value = Fraction(number)
    plain = f"{number:f}"
    grouped = f"{number:,f}"
    dresses = [plain, grouped, f"${plain}", f"{plain}%", f"{plain} apples", f"{plain}.", f"x = {plain}", f" {plain} "]
    dresses += [plain.replace("-", "−"), plain.rstrip("0").rstrip("."), f"{plain} km/h", f"\\${grouped}"]
    for dress in dresses:
        assert parse_number(dress) == value, dress


@given(st.integers(-999, 999), st.integers(1, 999))
def test_fractions_are_exact(top, bottom):
    assert parse_number(f"{top}/{bottom}") == Fraction(top, bottom)
    assert parse_number(f"\\frac{{{top}}}{{{bottom}}}") == Fraction(top, bottom)


@given(NUMBERS, NUMBERS)
def test_different_numbers_differ(first, second):
    assert (parse_number(str(first)) == parse_number(str(second))) == (first == second)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 1/2", Fraction(3, 2)),
        ("3 1/2 cups", Fraction(7, 2)),
        ("1e3", 1000),
        ("1.5E-2", Fraction(3, 200)),
        (".5", Fraction(1, 2)),
        ("3 + 4 = 7", 7),
        ("1\u00a0000", 1000),
        ("1{,}000", 1000),
        ("-$5", -5),
        ("007", 7),
    ],
)
def test_numbers_that_are_read(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "3 and 4",
        "12:30",
        "2023-05-01",
        "x2",
        "1,5",
        "4-5",
        "1/0",
        "1e999",
        "1.2.3",
        "10^3",
        "5 000",
        "9" * 1001,
    ],
)
def test_texts_that_state_no_single_number(text):
    assert parse_number(text) is None


def test_the_gold_answer_stands_behind_the_hashes():
    assert gold_text("He has 3 + 4 = <<3+4=7>>7.\n#### 7 ") == "7"
    assert gold_text("7") == "7"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("(A)", "A.", True),
        ("  The  Cat. ", "the cat", True),
        ("**yes**", "Yes", True),
        ("'hi'", "hi", True),
        ("(a) b", "b", False),
        ("north", "south", False),
    ],
)
def test_texts_that_no_reader_tells_apart_are_equal(first, second, same):
    assert (normalize_text(first) == normalize_text(second)) == same


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("What is 3 + 4?", "what is 3+4 ?", True),
        ("Tom’s 1,000 apples.", "Tom's 1000 apples", True),
        ("(1 + 2) * 3", "1 + (2 * 3)", False),
        ("What is 3.5?", "What is 35?", False),
        ("3 - 4", "3 + 4", False),
        ("???", "!!!", False),
    ],
)
def test_questions_compare_by_what_carries_meaning(first, second, same):
    assert (normalize_question(first) == normalize_question(second)) == same


def _balanced(text):
    depth = 0
    for sign in text:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth < 0:
            return False
    return depth == 0 and not text.endswith((".", "\\"))
