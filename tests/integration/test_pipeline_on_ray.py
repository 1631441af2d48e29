"""The whole loop on real Ray with a random tiny Llama and a scripted explorer, undisturbed and killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raylm.config import load
from raylm.pipeline.config import PipelineConfig

ROOT = Path(__file__).parent.parent.parent
CONFIG = str(ROOT / "jobs" / "configs" / "micro.yaml")
STAGES = ("evaluate_before", "explore", "synthesize", "finetune", "evaluate_after")


def _start(module, *arguments, cwd=ROOT):
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def _pipeline(out, *overrides):
    """With a relative `out`, as people give it, and workers that have other working directories."""
    return _start("jobs.pipeline", CONFIG, f"out={out.name}", *overrides, cwd=out.parent)


def _digests(stage):
    files = [file for folder in ("data", "model") for file in (stage / folder).glob("*")]
    return {str(file.relative_to(stage)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An undisturbed run: its directory and what it printed."""
    out = tmp_path_factory.mktemp("pipeline") / "run"
    job = _pipeline(out)
    printed, _ = job.communicate(timeout=500)
    assert job.returncode == 0, printed
    return out, printed


def test_every_stage_leaves_rows_a_manifest_and_a_report(finished):
    out, printed = finished
    for stage in STAGES:
        manifest = json.loads((out / stage / "manifest.json").read_text())
        assert manifest["rows"] > 0
        assert manifest["outputs"]
        assert (out / stage / "report.html").stat().st_size > 1000
    funnel = json.loads((out / "synthesize" / "manifest.json").read_text())["funnel"]
    assert funnel["problems"] == 12
    assert funnel["selected"] >= 5
    assert (out / "report.html").exists()
    for word in ("from problems to chains", "selected", "in domain", "report.html", "finetune"):
        assert word in printed


def test_training_lowered_the_loss_and_moved_a_mask(finished):
    figures = json.loads((finished[0] / "finetune" / "manifest.json").read_text())["figures"]
    assert figures["last_loss"] < figures["first_loss"]
    assert figures["export_largest_logit_difference"] < 1e-3
    assert (finished[0] / "finetune" / "data" / "isolation.parquet").exists()


def test_a_second_run_only_repeats_the_summary(finished):
    out, _ = finished
    before = {file: file.stat().st_mtime_ns for file in out.glob("*/data/*")}
    job = _pipeline(out)
    printed, _ = job.communicate(timeout=300)
    assert job.returncode == 0, printed
    assert printed.count("done before, skipped") == 6
    assert {file: file.stat().st_mtime_ns for file in out.glob("*/data/*")} == before


def test_a_driver_killed_while_training_goes_on_to_the_same_bytes(finished, tmp_path):
    """Training is a function of the config and the chains; a kill in the middle of it changes nothing."""
    reference, steps = finished[0] / "finetune", tmp_path / "steps"
    stage = load(PipelineConfig, [CONFIG]).stage_configs()["finetune"].model_dump(mode="json")
    stage |= {"chains": str(finished[0] / "synthesize"), "out": str(tmp_path / "finetune"), "step_log": str(steps)}
    (tmp_path / "finetune.yaml").write_text(json.dumps(stage))
    job = _start("jobs.finetune", str(tmp_path / "finetune.yaml"))
    deadline = time.monotonic() + 400
    while not (steps.exists() and len(steps.read_text().splitlines()) >= 5):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGKILL)
    job.wait()
    taken = len(steps.read_text().splitlines())
    again = _start("jobs.finetune", str(tmp_path / "finetune.yaml"))
    printed, _ = again.communicate(timeout=500)
    assert again.returncode == 0, printed
    assert _digests(tmp_path / "finetune") == _digests(reference)
    logged = [json.loads(line)["step"] for line in steps.read_text().splitlines()]
    assert taken >= 5
    assert len(logged) - len(set(logged)) <= 2  # checkpoint_every of the preset


def test_settings_of_another_run_are_refused(finished):
    job = _pipeline(finished[0], "seed=7")
    printed, _ = job.communicate(timeout=100)
    assert job.returncode == 2
    assert printed.strip().splitlines()[-1].startswith("error: ")
    assert "seed: 0 -> 7" in printed
