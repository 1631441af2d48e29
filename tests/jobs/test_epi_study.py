"""The study of isolation: its measures are right on made-up runs, and its runs are what they are called."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.studies.epi import analysis, tasks, tiers
from jobs.studies.epi import run as study
from jobs.studies.epi.tiers import MICRO, TIERS
from raylm.config import build
from raylm.train.config import FinetuneConfig

ORDER = ["a", "b"]


def made(arm, seed, kept, learnt, moved=1.0):
    """A run that starts at 1 on `before`, ends there at `kept`, and learns both tasks to `learnt` to keep them."""
    looks = {
        "before": {0: 1.0, 2: kept, 4: kept},
        "a": {0: 0.0, 2: learnt, 4: learnt},
        "b": {0: 0.0, 2: 0.0, 4: learnt},
    }
    return {"arm": arm, "seed": seed, "order": ORDER, "looks": looks, "ends": {"a": 2, "b": 4}, "distance": moved,
            "masks": []}  # fmt: skip


def test_forgetting_and_plasticity_of_a_known_run():
    run = made("x", 0, kept=0.4, learnt=0.5)
    assert analysis.forgetting(run) == pytest.approx(0.2)  # 0.6 of one set of three
    assert analysis.learned(run) == 0.5
    assert analysis.final(run) == pytest.approx((0.4 + 0.5 + 0.5) / 3)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.9))
def test_an_arm_on_the_front_is_not_beyond_it_and_one_that_keeps_more_is(kept, learnt, less):
    front = [made("fast", seed, 0.0, 1.0, 2.0) for seed in (0, 1)]
    front += [made("slow", seed, 1.0, 0.0, 1.0) for seed in (0, 1)]
    on = [made("on", seed, 1 - learnt, learnt, 1 + learnt) for seed in (0, 1)]
    for at in (analysis.learned, analysis.distance):
        gap, _ = analysis.beyond_front(front + on, "on", ("fast", "slow"), at)
        assert gap == pytest.approx(0, abs=1e-9)
    better = [made("better", seed, min(1.0, 1 - learnt + less), learnt) for seed in (0, 1)]
    gap, (low, high) = analysis.beyond_front(front + better, "better", ("fast", "slow"))
    assert gap == pytest.approx(min(less, learnt) / 3, abs=1e-9)
    assert low <= gap + 1e-9
    assert gap <= high + 1e-9


def test_differences_are_taken_in_pairs():
    runs = [made("x", seed, 0.5 + 0.1 * seed, 0.5) for seed in range(3)]
    runs += [made("y", seed, 0.4 + 0.1 * seed, 0.5) for seed in range(3)]
    gap, bounds = analysis.difference(runs, "x", "y", "forgetting")
    assert gap == pytest.approx(-0.1 / 3)
    assert bounds == pytest.approx([-0.1 / 3] * 2)


def test_interference_is_what_a_sequence_costs_against_a_run_alone():
    runs = [made("full", 0, 0.5, 0.5)]
    for task in ORDER:
        runs.append({"arm": "full", "seed": 0, "order": [task], "looks": {task: {0: 0.0, 2: 0.9}}, "ends": {task: 2}})
    assert analysis.interference(runs, "full", "full")[0] == pytest.approx(0.4)


@pytest.mark.parametrize("tier", TIERS.values(), ids=list(TIERS))
def test_every_arm_is_a_config_of_the_trainer(tier):
    assert set(tier.mixed) <= set(tier.families)
    for changes in tier.arms.values():
        settings = {key: value for key, value in changes.items() if key != "lr_factor"}
        if settings.get("isolation", {}).get("source") == "file":
            settings["isolation"] = {**settings["isolation"], "mask_file": "x"}
        named = [{"name": name, "chains": "x"} for name in tier.orders[0]]
        build(FinetuneConfig, {**tier.settings, **settings, "tasks": named, "order": "sequential"})


def test_parts_of_a_task_share_no_question(tmp_path):
    for name in tasks.TASKS:
        files = tasks.write(tmp_path, name, 0, (40, 30, 20))
        lines = [Path(path).read_text().splitlines() for path in files.values()]
        assert [len(part) for part in lines] == [40, 30, 20]
        assert len({json.loads(line)["messages"][0]["content"] for part in lines for line in part}) == 90


def test_runs_are_kept_and_gone_on_from(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tiers, "SIZES", (32, 32, 8))
    monkeypatch.setattr(tiers, "EPOCHS", 1)
    chosen = dict.fromkeys(MICRO.families, "full") | {"epi": "epi_0.5_1.0"}
    kinds = [kind for kinds in study.rounds(MICRO, chosen) for kind in kinds if not kind[0].startswith("lr")]
    rows = list(study.rows_of(MICRO, 0, kinds, tmp_path))
    sequences, mixed = [("full", 4), ("epi_0.5_1.0", 4)] * 2, [("full", 1), ("epi_0.5_1.0", 1)]
    assert [(row["arm"], len(row["order"])) for row in rows] == [*sequences, *mixed, *[("full", 1)] * 4]
    for row in rows:
        learned = row["order"] if row["order"] != ["mixed"] else tasks.ORDERS[0]
        for looks in (row["looks"], row["token_looks"]):
            assert set(looks) == {*learned, "all"}  # "all" holds what was there before
        assert row["distance"] > 0
        assert bool(row["masks"]) == (row["arm"] == "epi_0.5_1.0")
    other = [("half_1.0", order) for order in MICRO.orders]
    assert list(study.rows_of(MICRO, 0, other, tmp_path, shard=(2, 3))) == []  # neither is of this shard
    assert [row["ends"][task] for row in rows[:1] for task in row["order"]] == [4, 8, 12, 16]
    lines = (tmp_path / "rows-0.jsonl").read_text()
    assert list(study.rows_of(MICRO, 0, kinds, tmp_path)) == rows
    assert (tmp_path / "rows-0.jsonl").read_text() == lines
