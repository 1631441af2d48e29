"""The whole loop on real Ray with a random tiny Llama and a scripted explorer, undisturbed and killed."""

import hashlib
import json
from pathlib import Path

import pytest

from raylm.config import load
from raylm.pipeline.config import PipelineConfig

ROOT = Path(__file__).parent.parent.parent
CONFIG = str(ROOT / "jobs" / "configs" / "micro.yaml")
STAGES = ("evaluate_before", "explore", "synthesize", "finetune", "evaluate_after")


def _digests(stage):
    files = [file for folder in ("data", "model") for file in (stage / folder).glob("*")]
    return {str(file.relative_to(stage)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def finished(start_job, tmp_path_factory):
    """An undisturbed run: its directory and what it printed."""
    out = tmp_path_factory.mktemp("pipeline") / "run"
    # With a relative `out`, as people give it, and workers that have other working directories.
    return out, start_job("jobs.pipeline", CONFIG, f"out={out.name}", cwd=out.parent).finish()


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


def test_a_second_run_only_repeats_the_summary(finished, run_verb, monkeypatch):
    out, _ = finished
    before = {file: file.stat().st_mtime_ns for file in out.glob("*/data/*")}
    monkeypatch.chdir(out.parent)
    code, printed = run_verb("pipeline", CONFIG, f"out={out.name}")
    assert code == 0, printed
    assert printed.count("done before, skipped") == 6
    assert {file: file.stat().st_mtime_ns for file in out.glob("*/data/*")} == before


def test_a_driver_killed_while_training_goes_on_to_the_same_bytes(finished, start_job, run_verb, tmp_path):
    """Training is a function of the config and the chains; a kill in the middle of it changes nothing."""
    reference, steps = finished[0] / "finetune", tmp_path / "steps"
    stage = load(PipelineConfig, [CONFIG]).stage_configs()["finetune"].model_dump(mode="json")
    stage |= {"chains": str(finished[0] / "synthesize"), "out": str(tmp_path / "finetune"), "step_log": str(steps)}
    (tmp_path / "finetune.yaml").write_text(json.dumps(stage))
    start_job("jobs.finetune", tmp_path / "finetune.yaml").kill_at(steps, 5)
    taken = len(steps.read_text().splitlines())
    code, printed = run_verb("finetune", tmp_path / "finetune.yaml")
    assert code == 0, printed
    assert _digests(tmp_path / "finetune") == _digests(reference)
    logged = [json.loads(line)["step"] for line in steps.read_text().splitlines()]
    assert taken >= 5
    assert len(logged) - len(set(logged)) <= 2  # checkpoint_every of the preset


def test_settings_of_another_run_are_refused(finished, run_verb, monkeypatch):
    monkeypatch.chdir(finished[0].parent)
    code, printed = run_verb("pipeline", CONFIG, f"out={finished[0].name}", "seed=7")
    assert code == 2
    assert printed.strip().splitlines()[-1].startswith("error: ")
    assert "seed: 0 -> 7" in printed
