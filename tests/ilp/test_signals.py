"""Signals out of what was measured."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.ilp.config import DiagnoseConfig
from raylm.ilp.items import Item
from raylm.ilp.signals import ENOUGH, SignalMaker, modal


def unfamiliarity(asked, learned):
    """Signal of a question of familiarity `asked`, where those of the learned samples are given."""
    names = [f"learned-{number}" for number in range(len(learned))]
    items = [Item(name, [{"role": "user", "content": name}], "x", "exact", "x") for name in ["asked", *names]]
    values = dict(zip(["asked", *names], [asked, *learned], strict=True))
    before = {name: {"familiarity": value, "least": -1.0} for name, value in values.items()}
    probed = {
        item.id: SimpleNamespace(verdict="unlearned" if item.id == "asked" else "learned", response="y")
        for item in items
    }
    maker = SignalMaker(DiagnoseConfig(), items, [], np.zeros(len(items)), probed=probed, before=before, log=None)
    return maker.of(items[:1], {})["asked"].unfamiliarity


@given(st.lists(st.floats(-6, -3), min_size=40, max_size=60), st.integers(0, 9), st.floats(-6, -3))
def test_learned_samples_of_the_same_kind_do_not_hide_what_is_unfamiliar(known, alike, usual):
    values = [*known, *np.linspace(-20, -18, alike)]
    lower, upper = np.quantile(values, (0.25, 0.75))
    limit = DiagnoseConfig().rules.unfamiliar
    assert unfamiliarity(usual, values) == pytest.approx((lower - usual) / max(upper - lower, 1e-6))
    if upper - lower < 4:
        assert unfamiliarity(-19.0, values) > limit


def test_a_question_as_familiar_as_others_lies_within_their_range():
    known = np.linspace(-5, -3, 60)
    assert unfamiliarity(-4.0, known) < 0
    assert unfamiliarity(-5.0, known) < 1


def test_few_learned_samples_say_nothing():
    assert unfamiliarity(-19.0, [-4.0] * (ENOUGH - 1)) is None


def test_the_first_of_equally_frequent_answers_counts():
    assert modal(["b", "a", "a", "b", "c"]) == ("b", 0.4)
    assert modal([]) == ("", 0.0)
