"""A diagnosis on Ray: killed and gone on with, with the same result; and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raylm.config import build
from raylm.errors import UserError
from raylm.ilp import items, measure, stage
from raylm.ilp.config import DiagnoseConfig
from raylm.llm import models
from raylm.storage import Store
from raylm.train.config import FinetuneConfig
from raylm.train.repair import RepairPlan
from raylm.train.run import Run

MODEL = str(models.resolve("micro").path)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A micro model that has learned some chains and not others, two of which contradict each other."""
    root = tmp_path_factory.mktemp("tuned")
    words = ("red", "blue", "green", "grey", "black", "white")
    pairs = [(f"colour of {chr(97 + n)}{chr(99 + n)}", words[n % 6]) for n in range(14)]
    pairs += [("tell me the colour of xx", "red"), ("what is the colour of xx", "blue")]
    rows = [
        {"id": f"s{n}", "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "kept": n}
        for n, (q, a) in enumerate(pairs)
    ]
    (root / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"chains": str(root / "chains.jsonl"), "engine": "torch", "workers": 1, "batch_size": 4, "epochs": 12,
                "lr": 3e-3, "model": MODEL, "max_length": 96, "isolation": {"enabled": False}}  # fmt: skip
    torch.manual_seed(0)
    run = Run(build(FinetuneConfig, settings), MODEL, root, (0, 1))
    run.train(lambda row: None, lambda step, state: None)
    names = ("step", "id", "loss", "token_accuracy")
    seen = [dict(zip(names, row, strict=True)) for row in run.finish()["seen"]]
    pq.write_table(pa.Table.from_pylist(seen), root / "log.parquet")
    return root


def settings(root, out, **changes):
    return {
        "model": str(root / "model"), "base": MODEL, "chains": str(root / "chains.jsonl"), "out": str(out),
        "log": str(root / "log.parquet"), "max_length": 96, "probe": {"max_tokens": 8}, "unit": 4,
        "engine": {"kind": "transformers", "context": 128, "kv_cache_gib": 0.1},
        "compute": {"cpus": 1, "in_flight": 2}, **changes,
    }  # fmt: skip


def test_a_diagnosis_that_is_killed_goes_on_and_says_the_same(ray_cluster, tuned, tmp_path):
    config = build(DiagnoseConfig, settings(tuned, tmp_path / "whole"))
    whole = stage.run(config)
    counts = whole.figures["verdicts"]
    assert sum(counts.values()) == 16
    assert counts["learned"] < 16
    assert whole.figures["contradictions"] == 1
    given = settings(tuned, tmp_path / "killed")
    command = [
        sys.executable,
        "-m",
        "raylm.cli",
        "diagnose",
        *(f"{key}={json.dumps(value)}" for key, value in given.items()),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    parts = tmp_path / "killed" / "parts"
    deadline = time.monotonic() + 300
    while child.poll() is None and time.monotonic() < deadline and not list(parts.glob("*.parquet")):
        time.sleep(0.2)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert list(parts.glob("*.parquet"))
    again = stage.run(build(DiagnoseConfig, given))
    assert again.outputs == whole.outputs
    assert again.figures == whole.figures
    store = Store(str(tmp_path / "whole"))
    plan = build(RepairPlan, store.read_json("plan.json"))
    assert plan.samples == whole.inputs["samples"]
    failed = store.read_table("data/unlearned.parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "whole" / "flagged.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {row["id"] for row in failed}
    assert all("kept" in line for line in lines)
    assert stage.run(config).outputs == whole.outputs  # returns at once


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log": "{root}/other.jsonl"}, "none of its 1 samples is among the 16 given"),
        ({"log": "{root}/none.parquet"}, "no such file"),
        ({"before": "{root}"}, "no finished diagnosis here"),
        ({"max_length": 8}, "all 16 samples are longer than max_length=8"),
        ({"probe": {"max_tokens": 120}}, "leaves no room for probe.max_tokens=120"),
    ],
)
def test_bad_input_is_refused_before_anything_is_asked(tuned, tmp_path, changes, message):
    (tuned / "other.jsonl").write_text('{"step": 1, "id": "zz", "loss": 1.0, "token_accuracy": 0.0}\n')
    told = {
        key: value.replace("{root}", str(tuned)) if isinstance(value, str) else value for key, value in changes.items()
    }
    with pytest.raises(UserError, match=message):
        stage.run(build(DiagnoseConfig, settings(tuned, tmp_path / "out", **told)))


def test_economies_change_neither_verdicts_nor_causes(tuned, tmp_path):
    """Also a screen says of its samples what the whole diagnosis says."""

    def found(name, count=0, **changes):
        config = build(DiagnoseConfig, settings(tuned, tmp_path / name, **changes))
        everyone = items.make(items.read(config)[0], config.probe)
        chosen = items.screen(everyone, count, 0)
        sources = measure.Sources(
            ask=measure.here(Store(str(tmp_path / name))),
            tuned=str(tuned / "model"),
            base=MODEL,
            encode=stage.encoder(config.encoder),
        )
        return measure.diagnose(everyone, chosen, config, sources)

    thrifty = found("thrifty", ask_base={"learned": 1})
    whole = found("whole", ask_base={"learned": 0, "stop_early": False}, probe={"max_tokens": 8, "shortcuts": False})
    screened = found("screened", count=6, around=100)
    for item in thrifty.items:
        left, right = thrifty.probed[item.id], whole.probed[item.id]
        assert (left.verdict, left.written) == (right.verdict, right.written)
        assert left.nll == pytest.approx(right.nll, abs=1e-4)
    assert {name: each.holds for name, each in thrifty.causes.items()} == {
        name: each.holds for name, each in whole.causes.items()
    }
    learned = [each for each in thrifty.probed.values() if each.verdict == "learned"]
    compared = [each for each in learned if each.base_nll is not None]
    assert len(compared) == min(1, len(learned))
    assert all(each.base_nll is not None for each in whole.probed.values())
    assert all(thrifty.probed[name].improved == whole.probed[name].improved for name in thrifty.causes)
    assert len(screened.items) == 6
    for item in screened.items:
        assert screened.probed[item.id].verdict == whole.probed[item.id].verdict
    opposed = [pair for pair in screened.pairs if not pair.agrees]
    assert all(screened.everyone[pair.left].question.endswith("xx") for pair in opposed)
