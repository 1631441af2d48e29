"""Repair plans in the trainer."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raylm.config import build
from raylm.errors import UserError
from raylm.llm import models
from raylm.train import repair
from raylm.train.config import FinetuneConfig
from raylm.train.plan import Plan
from raylm.train.repair import Extras, RepairPlan
from raylm.train.run import Run
from raylm.train.work import Work

MODEL = str(models.resolve("micro").path)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chains(path, count, answer="yes"):
    turns = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": answer}] for n in range(count)]
    return write(path, [{"id": str(n), "messages": messages} for n, messages in enumerate(turns)])


def config_of(**changes):
    settings = {"engine": "torch", "workers": 1, "batch_size": 4, "epochs": 2, "model": MODEL, "max_length": 64,
                "isolation": {"enabled": False}}  # fmt: skip
    return build(FinetuneConfig, {**settings, **changes})


def work_of(tmp_path, plan, count=12, **changes):
    (tmp_path / "plan.json").write_text(repair.dump(plan))
    config = config_of(chains=chains(tmp_path / "chains.jsonl", count), plan=str(tmp_path / "plan.json"), **changes)
    return Work.of(config, rows_of(config), models.load_tokenizer(MODEL))


def rows_of(config):
    from raylm.train.data import read_all

    return read_all(config)[0]


def seen(work):
    return Counter(work.samples[place].id for step in range(work.plan.steps) for place in work.plan.batch_at(step))


def batches(plan):
    return [plan.batch_at(step) for step in range(plan.steps)]


@given(st.integers(4, 40), st.sampled_from([2, 3, 4, 8]), st.integers(0, 50), st.data())
def test_rivals_are_in_no_batch_together_over_all_passes(count, batch, seed, data):
    count = max(count, 3 * batch)
    couples = data.draw(st.integers(1, max(1, count // (2 * batch))))
    rivals = {}
    for number in range(couples):
        left, right = 2 * number, 2 * number + 1
        rivals |= {left: frozenset({right}), right: frozenset({left})}
    config = FinetuneConfig(batch_size=batch, epochs=3, seed=seed, workers=1, engine="torch")
    plan = Plan([""] * count, config, Extras(rivals=rivals))
    made = batches(plan)
    for each in made:
        assert not any(other in each for sample in each for other in rivals.get(sample, ()))
    counts = Counter(place for each in made for place in each)
    assert max(counts.values()) - min(counts.get(place, 0) for place in range(count)) <= 1
    again = Plan([""] * count, config, Extras(rivals=rivals))
    assert again.batch_at(plan.steps - 1) == made[-1]  # a resumed run may start anywhere


def test_swaps_keep_all_samples():
    order = np.arange(12)
    found = repair.apart(order, {0: frozenset({1}), 1: frozenset({0})}, 4, [])
    assert sorted(found.tolist()) == order.tolist()
    assert {int(each) // 1 for each in found[:4]} != set(range(4))


def test_without_a_plan_nothing_changes():
    config = FinetuneConfig(batch_size=4, epochs=3, workers=1, engine="torch")
    assert batches(Plan([""] * 10, config)) == batches(Plan([""] * 10, config, Extras()))


def test_dropped_samples_are_gone_and_weighted_ones_come_more_often(tmp_path):
    work = work_of(tmp_path, RepairPlan(drop=("3",), upweight={"5": 3.0}))
    counts = seen(work)
    assert "3" not in counts
    assert counts["5"] >= 2.5 * counts["1"]
    assert work.counts() == {"dropped": 1, "separated": 0, "upweighted": 1, "replayed": 0, "documents": 0}


def test_documents_come_first_among_general_text_with_a_schedule_of_their_own(tmp_path):
    write(tmp_path / "documents.jsonl", [{"text": f"fact {n}"} for n in range(4)])
    plan = RepairPlan(documents={"path": "documents.jsonl", "share": 0.25, "epochs": 2})
    work = work_of(tmp_path, plan)
    first, end = work.plan.stage_at(0)
    assert (first, end, work.plan.stage_at(end)) == (0, 8, (8, work.plan.steps))
    tasks = Counter(work.samples[place].task for step in range(end) for place in work.plan.batch_at(step))
    assert tasks == {repair.DOCUMENTS: 8, repair.GENERAL_TEXT: 24}
    later = {work.samples[place].task for step in range(end, work.plan.steps) for place in work.plan.batch_at(step)}
    assert later == {""}
    assert work.plan.steps == end + 6
    document = next(sample for sample in work.samples if sample.task == repair.DOCUMENTS)
    assert document.label_tokens == len(document.ids)


def test_replayed_samples_come_between_the_others(tmp_path):
    work = work_of(tmp_path, RepairPlan(replay={"ids": ["0", "1", "2", "3"], "every": 2}))
    assert work.plan.steps == 6 + 3
    replayed = [sorted(work.samples[place].id for place in work.plan.batch_at(step)) for step in (2, 5, 8)]
    assert replayed == [["0", "1", "2", "3"]] * 3
    assert work.plan.stage_at(2) == (0, 9)


def test_shuffling_mixes_tasks_and_keeps_how_often_each_comes(tmp_path):
    tasks = [{"name": name, "chains": chains(tmp_path / f"{name}.jsonl", 8), "epochs": epochs}
             for name, epochs in (("a", 3), ("b", 1))]  # fmt: skip
    before = config_of(tasks=tasks, order="sequential", epochs=1)
    after = repair.adapt(before, RepairPlan(shuffle=True))
    owners = ["a"] * 8 + ["b"] * 8
    mixed, sequential = Plan(owners, after), Plan(owners, before)
    assert mixed.steps == sequential.steps == 8
    counts = [Counter(owners[place] for each in batches(plan) for place in each) for plan in (mixed, sequential)]
    assert counts[0] == counts[1] == {"a": 24, "b": 8}
    assert any({owners[place] for place in each} == {"a", "b"} for each in batches(mixed))


def test_further_passes_end_when_the_general_set_suffers(tmp_path):
    chains(tmp_path / "general.jsonl", 4, answer="something else entirely")
    plan = RepairPlan(extra={"epochs": 40, "general": "general.jsonl", "max_rise": 0.02})
    work = work_of(tmp_path, plan, lr=1e-2, watch={"every": 2})
    torch.manual_seed(0)
    run = Run(work.config.model_copy(update={"epochs": 2.0}), MODEL, tmp_path, (0, 1))
    run.train(lambda row: None, lambda step, state: None)
    losses = [row["loss"] for row in run.watch.rows if row["set"] == repair.GENERAL]
    assert run.plan.steps == 3 * 42
    assert len(run.rows) < run.plan.steps
    assert losses[-1] > 1.02 * losses[0]
    assert all(loss <= 1.02 * losses[0] for loss in losses[:-1])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ('{"drop": ["0", "77"]}', "1 of its samples are not among the chains .first: 77."),
        ('{"droop": []}', "unknown key droop; did you mean drop"),
        ('{"drop": ["0", "1"]}', "drops all samples; take"),
        ('{"documents": {"path": "no.jsonl"}}', "no such file"),
        ("{", "damaged JSON"),
    ],
)
def test_a_bad_plan_is_refused(tmp_path, plan, message):
    (tmp_path / "plan.json").write_text(plan)
    config = config_of(chains=chains(tmp_path / "chains.jsonl", 2), plan=str(tmp_path / "plan.json"))
    with pytest.raises(UserError, match=message):
        Work.of(config, rows_of(config), models.load_tokenizer(MODEL))
