"""Rules of the causes."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.ilp.causes import UNEXPLAINED, Signals, above, attribute, below, shares, support, verdict
from raylm.ilp.config import CAUSES, RuleConfig

RULES = RuleConfig()
NEUTRAL = Signals(
    id="a", contradiction=0.0, base_right=0.5, base_confidence=0.3, base_wrong=True, unfamiliarity=0.5,
    divergence=0.6, looks_right=0, exposures=4, falling=0.0,
)  # fmt: skip
PLANTED = {
    "inconsistency": {"contradiction": 0.95},
    "prerequisite": {"base_right": 0.0, "unfamiliarity": 5.0},
    "conflict": {"base_confidence": 0.9},
    "forgotten": {"looks_right": 3},
    "underfit": {"falling": 0.4},
}
maybe = st.none() | st.floats(0, 1)
signals = st.builds(
    Signals, id=st.just("a"), contradiction=maybe, base_right=maybe, base_confidence=maybe, divergence=maybe,
    base_wrong=st.none() | st.booleans(), unfamiliarity=st.none() | st.floats(-3, 9), prerequisite_accuracy=maybe,
    looks_right=st.none() | st.integers(0, 5), falling=st.none() | st.floats(-1, 1),
)  # fmt: skip


def seen(**changes):
    return dataclasses.replace(NEUTRAL, **changes)


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_has_signals_that_name_it_alone(cause):
    given_ = attribute(seen(**PLANTED[cause]), RULES)
    assert (given_.cause, given_.other, given_.holds) == (cause, cause, (cause,))
    assert 0.5 <= given_.confidence <= 1


def test_nothing_holds_for_neutral_signals():
    given_ = attribute(NEUTRAL, RULES)
    assert (given_.cause, given_.confidence, given_.unknown) == (UNEXPLAINED, 0.0, ())


def test_the_order_decides_where_several_hold():
    both = seen(contradiction=0.95, looks_right=3)
    assert (attribute(both, RULES).cause, attribute(both, RULES).other) == ("inconsistency", "forgotten")


def test_without_a_log_two_causes_are_open_and_none_is_guessed():
    found = attribute(seen(looks_right=None, falling=None), RULES)
    assert (found.cause, found.unknown) == (UNEXPLAINED, ("forgotten", "underfit"))


def test_prerequisites_that_are_given_count_instead_of_familiarity():
    lacks = seen(base_right=0.0, unfamiliarity=0.0, prerequisite_accuracy=0.5)
    assert attribute(lacks, RULES).cause == "prerequisite"
    has = seen(base_right=0.0, unfamiliarity=9.0, prerequisite_accuracy=1.0)
    assert attribute(has, RULES).cause == UNEXPLAINED


def test_a_base_model_that_is_sure_and_right_is_in_no_conflict():
    assert attribute(seen(base_confidence=0.9, base_wrong=False), RULES).cause == UNEXPLAINED


@given(signals)
def test_attribution_is_consistent(each):
    found = attribute(each, RULES)
    assert (found.cause == UNEXPLAINED) == (not found.holds) == (found.other == UNEXPLAINED)
    assert found.cause in (*found.holds, UNEXPLAINED)
    assert not set(found.holds) & set(found.unknown)
    assert (found.confidence >= 0.5) == bool(found.holds)


@given(signals, st.sampled_from(["base_right", "looks_right", "contradiction", "falling", "base_confidence"]))
def test_a_missing_signal_never_makes_a_rule_hold(each, name):
    less = dataclasses.replace(each, **{name: None})
    for cause in CAUSES:
        if (support(cause, less, RULES) or 0) >= 0.5:
            assert (support(cause, each, RULES) or 0) >= 0.5


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 0.95))
def test_support_grows_with_its_signal_and_crosses_at_the_threshold(a, b, threshold):
    low, high = sorted((a, b))
    assert above(low, threshold, 1.0) <= above(high, threshold, 1.0)
    assert below(low, threshold) >= below(high, threshold)
    assert (above(a, threshold, 1.0) >= 0.5) == (a > threshold)
    assert (below(a, threshold) >= 0.5) == (a < threshold)


def test_verdicts_need_both_probes():
    assert [verdict(a, b) for a, b in ((True, True), (True, False), (False, True), (False, False))] == [
        "learned", "partial", "partial", "unlearned"
    ]  # fmt: skip


def test_shares_name_every_cause():
    given_ = {"a": attribute(seen(contradiction=0.95, looks_right=3), RULES), "b": attribute(NEUTRAL, RULES)}
    assert shares(given_) == {**dict.fromkeys(CAUSES, 0), "inconsistency": 1, UNEXPLAINED: 1}
    assert shares(given_, other=True)["forgotten"] == 1
