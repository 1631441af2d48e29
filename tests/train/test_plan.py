"""The order in which a run sees its samples."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.config import build
from raylm.errors import UserError
from raylm.train.config import FinetuneConfig
from raylm.train.plan import Plan

SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=4)


def planned(sizes, weights=None, **changes):
    """A plan over tasks a, b, ... with so many samples each, and the task of every sample."""
    names = "abcd"[: len(sizes)]
    owners = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
    tasks = [
        {"name": name, "chains": f"{name}.jsonl", "weight": weight}
        for name, weight in zip(names, weights or [1.0] * len(sizes), strict=True)
    ]
    config = build(FinetuneConfig, {"engine": "torch", "workers": 1, "batch_size": 4, "tasks": tasks, **changes})
    return Plan(owners, config), owners


def seen(plan, steps=None):
    return [plan.batch_at(step) for step in (range(plan.steps) if steps is None else steps)]


@given(st.integers(1, 40), st.sampled_from([1, 2, 4, 8]), st.floats(0.1, 4.0), st.integers(0, 3))
def test_a_plan_passes_over_every_sample_equally_often(count, batch, epochs, seed):
    config = FinetuneConfig(batch_size=batch, epochs=epochs, seed=seed, workers=1, engine="torch")
    plan = Plan([""] * count, config)
    seen = Counter(index for step in range(plan.steps) for index in plan.batch_at(step))
    assert plan.steps * batch >= epochs * count - 1e-6
    assert max(seen.values()) - min(seen.get(index, 0) for index in range(count)) <= 1
    again = Plan([""] * count, config)
    for step in reversed(range(plan.steps)):
        assert again.batch_at(step) == plan.batch_at(step)


@given(SIZES, st.sampled_from(["mixed", "by_task", "sequential"]), st.integers(0, 3))
def test_every_order_passes_over_all_samples_and_can_start_anywhere(sizes, order, seed):
    plan, owners = planned(sizes, order=order, epochs=2, seed=seed)
    counts = Counter(index for batch in seen(plan) for index in batch)
    assert set(counts) == set(range(len(owners)))
    assert min(counts.values()) >= (2 if order != "by_task" else 1)
    again, _ = planned(sizes, order=order, epochs=2, seed=seed)
    assert seen(again, reversed(range(plan.steps))) == seen(plan)[::-1]


@given(SIZES, st.sampled_from(["by_task", "sequential"]))
def test_batches_of_one_task_say_which(sizes, order):
    plan, owners = planned(sizes, order=order, epochs=2)
    for step, batch in enumerate(seen(plan)):
        assert {owners[index] for index in batch} == {plan.task_at(step)}


def test_tasks_take_turns_by_their_share():
    plan, _ = planned([40, 20, 20], order="by_task", epochs=1)
    turns = [plan.task_at(step) for step in range(plan.steps)]
    assert Counter(turns) == {"a": 10, "b": 5, "c": 5}
    assert Counter(turns[:4])["a"] == 2


def test_stages_follow_each_other_with_their_own_lengths():
    tasks = [{"name": "a", "chains": "a"}, {"name": "b", "chains": "b", "epochs": 3}]
    config = build(
        FinetuneConfig,
        {"engine": "torch", "workers": 1, "batch_size": 4, "epochs": 1, "order": "sequential", "tasks": tasks},
    )
    plan = Plan(["a"] * 8 + ["b"] * 6, config)
    assert [plan.task_at(step) for step in range(plan.steps)] == ["a"] * 2 + ["b"] * 5
    assert [plan.stage_at(step) for step in (0, 1, 2, 6)] == [(0, 2), (0, 2), (2, 7), (2, 7)]
    assert plan.epoch_at(1) == 1.0
    assert plan.epoch_at(6) == pytest.approx(20 / 6)


@given(st.floats(0.1, 3.0), st.integers(0, 3))
def test_weights_are_passes(weight, seed):
    plan, owners = planned([20, 20], [weight, 1.0], epochs=10, seed=seed)
    counts = Counter(owners[index] for batch in seen(plan) for index in batch)
    assert counts["a"] / counts["b"] == pytest.approx(weight, rel=0.15, abs=0.06)
    each = Counter(index for batch in seen(plan) for index in batch if owners[index] == "a")
    assert len(each) == 20 or weight < 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": [{"name": "a", "chains": "x"}, {"name": "a", "chains": "y"}]}, "'a' is there more than once"),
        ({"isolation": {"scope": "per_task"}}, "needs tasks, and order=by_task or order=sequential"),
        ({"tasks": [{"name": "", "chains": "x"}]}, "name"),
    ],
)
def test_settings_of_tasks_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        build(FinetuneConfig, changes)
