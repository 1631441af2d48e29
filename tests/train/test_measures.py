"""What a training run tells a sweep: as its config promises, and by the usual definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.classify.config import ClassifierConfig
from raylm.config import build
from raylm.train.config import FinetuneConfig
from raylm.train.plan import Plan
from raylm.train.watch import Watch

TASKS = [{"name": name, "chains": "c", "eval_chains": "e"} for name in ("a", "b")]


def watch(rows, **changes):
    config = build(FinetuneConfig, {"tasks": TASKS, "batch_size": 2, "epochs": 1, "workers": 1, **changes})
    found = Watch(config, {}, Plan(["a"] * 8 + ["b"] * 8, config))
    found.rows = [{"step": step, "set": name, "loss": 1 - exact, "exact": exact} for step, name, exact in rows]
    return config, found


# Task a is trained on in steps 1 to 4, b in 5 to 8.
LOOKS = [(0, "all", 0.9), (0, "a", 0.1), (0, "b", 0.0), (4, "all", 0.6), (4, "a", 0.8), (4, "b", 0.1),
         (8, "all", 0.5), (8, "a", 0.4), (8, "b", 0.7)]  # fmt: skip


def test_forgetting_and_the_new_tasks_of_a_sequence():
    config, found = watch(LOOKS, order="sequential", watch={"chains": "before"})
    measures = found.measures(8)
    assert measures["forgetting"] == pytest.approx((0.4 + 0.4 + 0.0) / 3)  # best minus last
    assert measures["new_task"] == pytest.approx((0.8 + 0.7) / 2)  # each at the end of its own training
    assert measures["held_out_exact"] == pytest.approx((0.5 + 0.4 + 0.7) / 3)
    assert {"loss", *measures} == set(config.measures())
    assert found.measures(4)["new_task"] == pytest.approx((0.8 + 0.1) / 2)


def test_mixed_tasks_count_as_they_are_in_the_end():
    _, found = watch(LOOKS, order="mixed")
    assert found.measures(8)["new_task"] == pytest.approx((0.4 + 0.7) / 2)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_nothing_is_forgotten_only_where_the_last_look_is_the_best(values):
    _, found = watch([(step, "a", value) for step, value in enumerate(values)])
    forgotten = found.measures(len(values))["forgetting"]
    assert 0 <= forgotten <= 1
    assert (forgotten == 0) == (values[-1] == max(values))


def test_a_config_promises_only_what_its_data_allow():
    assert set(build(FinetuneConfig, {}).measures()) == {"loss"}
    held = build(FinetuneConfig, {"watch": {"chains": "x"}})
    assert set(held.measures()) == {"loss", "held_out_loss", "held_out_exact", "forgetting"}
    assert watch([])[1].measures(8) == {}
    promised = build(ClassifierConfig, {"train": "x", "test": "y"}).measures()
    assert not any(name.startswith("test") or name in ("accuracy", "macro_f1") for name in promised)
