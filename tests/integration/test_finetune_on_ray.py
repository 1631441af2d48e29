"""Fine-tuning on Ray Train and DeepSpeed: killed and gone on with on other numbers of workers, tasks in a row."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from safetensors.torch import load_file, save_file

from raylm.llm import models
from raylm.train import checkpoint

ROOT = Path(__file__).parent.parent.parent


def chains(path, shift, count=24):
    with path.open("w") as file:
        for number in range(count):
            answer = f"{number} + {shift} = {number + shift}"
            turns = [{"role": "user", "content": f"{number} + {shift}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"id": str(number), "messages": turns}) + "\n")
    return str(path)


@pytest.fixture
def start(ray_cluster):
    """Starts jobs on the session's cluster, which saves each the start of its own; ends those that a test leaves."""
    environment, jobs = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}, []

    def run(*arguments):
        command = [sys.executable, "-m", "jobs.finetune", *arguments]
        jobs.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
        return jobs[-1]

    yield run
    for job in jobs:
        if job.poll() is None:
            job.kill()
            job.wait()


def finished(job):
    printed, _ = job.communicate(timeout=400)
    assert job.returncode == 0, printed
    return printed


SETTINGS = (
    "model=micro", "batch_size=4", "micro_batch=2", "epochs=4", "lr=0.003", "checkpoint_every=2",
    "isolation={protect: 0.2, refresh_every: 3, warmup: 2, measure_noise: true}",
)  # fmt: skip


def wait_for(condition, job):
    """Until it gives something, which is returned."""
    deadline = time.monotonic() + 300
    while not (found := condition()):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return found


def test_killed_runs_go_on_also_with_one_worker_at_another_stage(tmp_path, start):
    """First a worker is killed while a checkpoint is stored, which Ray Train mends, and then the job in a step."""
    data, out, steps = chains(tmp_path / "chains.jsonl", 1), tmp_path / "out", tmp_path / "steps"
    arguments = (*SETTINGS, f"chains={data}", f"out={out}", f"step_log={steps}")

    def taken():
        lines = steps.read_text().splitlines() if steps.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def stored():
        return set((out / "train").rglob("checkpoint_*"))

    job = start(*arguments, "workers=2", "zero=3")
    worker = wait_for(lambda: len(taken()) >= 5 and taken()[-1]["pid"], job)
    before = stored()
    wait_for(lambda: stored() - before, job)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: [row for row in taken() if row["pid"] != worker][2:], job)
    job.send_signal(signal.SIGKILL)
    job.wait()
    finished(start(*arguments, "workers=1", "zero=2"))
    logged = [json.loads(line)["step"] for line in steps.read_text().splitlines()]
    assert sorted(set(logged)) == list(range(1, 25))
    assert len(logged) - 24 <= 2 * 2  # twice checkpoint_every
    table = pq.read_table(out / "data" / "steps.parquet")
    assert table.column("step").to_pylist() == list(range(1, 25))
    losses = table.column("loss").to_pylist()
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    masks = pq.read_table(out / "data" / "isolation.parquet")
    assert masks.column("step").to_pylist() == [2, 5, 8, 11, 14, 17, 20, 23]
    assert masks.column("density").to_pylist() == pytest.approx([0.2] * 8, abs=1e-3)
    samples = pq.read_table(out / "data" / "samples.parquet")
    assert sorted(samples.column("id").to_pylist()) == sorted(4 * [str(number) for number in range(24)])
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["figures"]["export_largest_logit_difference"] < 1e-3
    assert "isolation/mask.safetensors" in manifest["outputs"]


def test_a_gradient_that_is_not_finite_ends_the_run_with_the_batchs_name(tmp_path, start):
    """It is not tried again: that would end alike."""
    data, steps, model = chains(tmp_path / "chains.jsonl", 1), tmp_path / "steps", tmp_path / "model"
    shutil.copytree(models.resolve("micro").path, model)
    weights = load_file(model / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    settings = (*SETTINGS, f"model={model}", "workers=1", "max_failures=3")
    job = start(*settings, f"chains={data}", f"out={tmp_path / 'out'}", f"step_log={steps}")
    printed, _ = job.communicate(timeout=400)
    assert job.returncode, printed
    words = " ".join(printed.split())
    assert "step 1: the gradient is not finite; the batch holds chains " in words
    assert "Traceback" not in printed
    assert not steps.exists()


def test_a_full_disk_ends_the_run_and_the_checkpoints_before_stay(tmp_path, start):
    """A disk of 4 MB holds two checkpoints and a part of the third; with room again, the same command goes on."""
    data, disk, out, steps = chains(tmp_path / "chains.jsonl", 1), tmp_path / "disk", tmp_path / "out", tmp_path / "log"
    settings = (*SETTINGS, f"chains={data}", f"step_log={steps}", "workers=1")
    disk.mkdir()
    script = 'mount -t tmpfs -o size=4m tmpfs "$1" && "${@:3}"; code=$?; cp -r "$1/out" "$2"; exit $code'
    command = [sys.executable, "-m", "jobs.finetune", *settings, f"out={disk / 'out'}", "max_failures=0"]
    full = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "bash", "-c", script, "full", disk, out, *command],
        check=False, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": "local"}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert full.returncode == 2, full.stderr
    words = " ".join(full.stderr.split())
    assert "no space left " in words  # for the checkpoint, or for the notes that Ray Train keeps beside it
    assert "free some and run the same command again" in words
    assert "Traceback" not in full.stderr
    stored = checkpoint.step_of(checkpoint.newest(out / "train"))
    assert stored in {2, 4}
    before = len(steps.read_text().splitlines())
    finished(start(*settings, f"out={out}"))
    rest = [json.loads(line)["step"] for line in steps.read_text().splitlines()[before:]]
    assert rest == list(range(stored + 1, 25))
    left = [folder for folder in (out / "train").glob("checkpoint_*") if checkpoint.step_of(folder) < 0]
    assert not left  # what was cut short is gone


def test_tasks_in_a_row_with_all_that_watches_them(tmp_path, start):
    """On two workers at stage 3: held-out looks, best weights, consolidation, adapters' rival settings, curves."""
    tasks = [
        {
            "name": name,
            "chains": chains(tmp_path / f"{name}.jsonl", shift, 8),
            "eval_chains": chains(tmp_path / f"{name}-held.jsonl", shift, 5),
        }
        for name, shift in (("first", 1), ("second", 30))
    ]
    settings = {
        "model": "micro", "tasks": tasks, "order": "sequential", "out": str(tmp_path / "out"), "batch_size": 4,
        "micro_batch": 2, "epochs": 4, "lr": 3e-3, "zero": 3, "packing": True, "log_to": ["tensorboard"],
        "watch": {"every": 4, "keep_best": True}, "penalty": {"kind": "ewc", "weight": 1.0},
        "isolation": {"scope": "per_task", "warmup": 2, "refresh_every": 2},
    }  # fmt: skip
    (tmp_path / "finetune.yaml").write_text(json.dumps(settings))
    finished(start(str(tmp_path / "finetune.yaml")))
    out = tmp_path / "out"
    watch = pq.read_table(out / "data" / "watch.parquet").to_pylist()
    assert [row["step"] for row in watch if row["set"] == "first"] == [0, 4, 8, 12, 16]
    first = {row["step"]: row["loss"] for row in watch if row["set"] == "first"}
    second = {row["step"]: row["loss"] for row in watch if row["set"] == "second"}
    assert first[8] < first[0]
    assert second[16] < second[8]
    densities = pq.read_table(out / "data" / "isolation.parquet").column("density").to_pylist()
    assert densities[0] == pytest.approx(0.05, abs=1e-3)
    assert densities[-1] > 0.055  # what either task needs
    manifest = json.loads((out / "manifest.json").read_text())
    best = min(first, key=lambda step: first[step] + second[step])
    assert manifest["figures"]["exported_step"] == best
    html = (out / "report.html").read_text()
    for words in ("Held-out chains", "forgotten (best - last)", "Isolation"):
        assert words in html
    assert list((out / "tensorboard").glob("events*"))
