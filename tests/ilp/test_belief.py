"""The base model is asked until nothing can hang on it any more, and no cause changes for that."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raylm.ilp.belief import Stakes, rounds, settled, stakes
from raylm.ilp.causes import Signals, attribute
from raylm.ilp.config import RuleConfig
from raylm.ilp.signals import _belief

RESPONSES = st.lists(st.sampled_from("abcdefghij"), min_size=10, max_size=10)


def rows_of(said, gold, unclear):
    """Responses as the worker judges them; `unclear` is the one that no check can tell of."""
    judged = [None if normal == unclear else normal == gold for normal in said]
    return [
        {"place": place, "normal": normal, "right": right}
        for place, (normal, right) in enumerate(zip(said, judged, strict=True), start=1)
    ]


def asked_until_settled(rows, given_stakes, rules):
    kept = []
    for places in rounds(len(rows)):
        kept += [rows[place] for place in places]
        if settled([row["normal"] for row in kept], [row["right"] for row in kept], len(rows), given_stakes, rules):
            break
    return kept


KNOWN = st.tuples(st.one_of(st.none(), st.floats(-2, 9)), st.floats(0, 0.69), st.one_of(st.none(), st.floats(0, 1)))


@given(RESPONSES, st.sampled_from("abz"), st.sampled_from("bcz"), KNOWN)
@example(list("aaaaaaaabc"), "z", "z", (4.0, 0.6, None))
@example(list("abcdefghij"), "a", "z", (4.0, 0.6, None))
def test_the_causes_are_those_of_all_samples(said, gold, unclear, signals):
    unfamiliarity, divergence, needed = signals
    rules = RuleConfig()
    known = {"unfamiliarity": unfamiliarity, "divergence": divergence, "prerequisite_accuracy": needed}
    given_stakes = stakes(unfamiliarity, needed is not None, divergence, rules)
    rows = rows_of(said, gold, unclear)
    whole = attribute(Signals(id="x", contradiction=0.0, **known, **_belief(rows)), rules)
    few = asked_until_settled(rows, given_stakes, rules) if given_stakes else []
    found = attribute(Signals(id="x", contradiction=0.0, **known, **_belief(few)), rules)
    assert (found.cause, found.other, found.holds) == (whole.cause, whole.other, whole.holds)
    assert set(found.unknown) <= set(whole.unknown) | {"forgotten", "underfit"}
    if found.cause != "unexplained":
        assert found.confidence == whole.confidence


@pytest.mark.parametrize(
    ("said", "gold", "asked"), [("abcdefghij", "z", 4), ("aaaaaaaaaa", "z", 10), ("aabcdefghi", "z", 8), ("", "z", 0)]
)
def test_a_base_model_of_many_opinions_is_asked_four_times(said, gold, asked):
    rows = rows_of(said, gold, "")
    assert len(asked_until_settled(rows, Stakes(False, True), RuleConfig())) == asked


def test_what_is_unfamiliar_is_asked_until_two_are_right():
    open_ = Stakes(True, False)
    assert len(asked_until_settled(rows_of("bbbbbbbbbb", "a", ""), open_, RuleConfig())) == 10
    assert len(asked_until_settled(rows_of("aabbbbbbbb", "a", ""), open_, RuleConfig())) == 4


def test_nothing_hangs_on_a_familiar_question_with_an_expected_answer():
    assert not stakes(0.0, False, 0.1, RuleConfig())
    assert stakes(0.0, True, 0.1, RuleConfig()).prerequisite
    assert stakes(None, False, 0.1, RuleConfig()).prerequisite
