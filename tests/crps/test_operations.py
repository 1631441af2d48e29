"""Operations in steps: found, undone, and checked in place."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.crps.operations import annotate, inverse, operations
from raylm.tasks.answers import equalities


@pytest.mark.parametrize(
    ("step", "check"),
    [
        ("12 - 5 = 7", "7 + 5 = 12"),
        ("So he has $5 + $7 = $12 now.\n", "$12 - $7 = $5"),
        ("6 + 7 - 4 = 9", "9 + 4 = 6 + 7"),
        ("2 + 3 * 4 = 14", "14 - 3 * 4 = 2"),
        ("12 / 4 * 3 = 9", "9 / 3 = 12 / 4"),
        ("2812 - 3851 = -1039", "-1039 + 3851 = 2812"),
        ("5 - -3 = 8", "8 + -3 = 5"),
        ("3 × 4 = 12", "12 ÷ 4 = 3"),
        ("3 x 4 = 12 apples.", "12 / 4 = 3"),
        ("5+7=12", "12-7=5"),
        ("1,200 + 300 = 1,500", "1,500 - 300 = 1,200"),
        ("10 / 3 = 3.33", ""),  # rounded: no exact inverse
        ("5 * 0 = 0", ""),
    ],
)
def test_an_operation_is_recomputed_backwards(step, check):
    (found,) = operations(step)
    assert inverse(found) == check


@pytest.mark.parametrize("step", ["x + 3 + 4 = 10", "(2 + 3) * 4 = 20", "no numbers", "7 = 3 + 4", "\\boxed{3}", ""])
def test_what_is_no_plain_operation_is_left_alone(step):
    assert operations(step) == []


@settings(deadline=None)
@given(st.integers(-999, 999), st.sampled_from("+-*/"), st.integers(-99, 99), st.booleans())
def test_an_inverse_always_holds_and_is_read_as_one_claim(left, sign, right, unit):
    if sign == "/":
        if right == 0:
            return
        left *= right
    result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right if right else 0}[sign]
    step = f"{left} {sign} {right} = {result}{' cows' if unit else ''}\n"
    (found,) = operations(step)
    assert found.numbers == (str(left), str(right))
    check = inverse(found)
    assert check or (sign == "*" and right == 0)
    if check:
        written = annotate(step, found, ", since ", check, avoided="999999")
        assert written.endswith(f", since {check}\n")
        assert [claim.holds for claim in equalities(written)] == [True, True]


def test_a_remark_in_a_long_sentence_becomes_a_sentence():
    step = "So Tom has 5 + 7 = 12 apples in his basket.\n"
    (found,) = operations(step)
    assert annotate(step, found, ", since ", inverse(found)) == step.replace(".\n", ". Check: 12 - 7 = 5.\n")
    assert annotate(step, found, ", since ", "") == step


def test_a_final_answer_is_never_annotated():
    (found,) = operations("Answer: 5 + 7 = 12")
    with pytest.raises(ValueError, match="must stay"):
        annotate("Answer: 5 + 7 = 12", found, ", since ", inverse(found))
