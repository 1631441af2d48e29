"""A reward model on Ray: trained by two workers that are killed, gone on with by one; then scoring and diagnosis."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from raylm.config import build
from raylm.srm import diagnose, score
from raylm.srm.config import DiagnoseConfig, ScoreConfig
from raylm.srm.model import RewardModel
from raylm.storage import Store
from tests.srm.conftest import BRANCHES, encoder, files, rows, write  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("ray_cluster")
ROOT = Path(__file__).parent.parent.parent


def start(*arguments):
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}  # the session's
    command = [sys.executable, "-m", "jobs.train_reward", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(job):
    printed, _ = job.communicate(timeout=400)
    assert job.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def trained(encoder, tmp_path_factory):  # noqa: F811
    """The artefact of a run that was killed with two workers and ended with one, the one of a run that was not."""
    place = tmp_path_factory.mktemp("reward")
    pairs, ratings = rows()
    paths = write(place / "pairs.jsonl", pairs), write(place / "ratings.jsonl", ratings)
    arguments = (
        f"pairs={paths[0]}", f"ratings={paths[1]}", f"model={encoder}", f"branches={json.dumps(BRANCHES)}", "folds=2",
        "epochs=6", "batch_size=8", "head_lr=0.01", "max_length=64", "checkpoint_every=4",
    )  # fmt: skip
    finished(start(*arguments, f"out={place}/whole"))
    steps = place / "steps"
    job = start(*arguments, f"out={place}/killed", f"step_log={steps}", "workers=2")
    deadline = time.monotonic() + 300
    while not (steps.exists() and len(steps.read_text().splitlines()) >= 30):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGKILL)
    job.wait()
    finished(start(*arguments, f"out={place}/killed", f"step_log={steps}"))
    return place


def test_a_killed_run_ends_as_one_that_was_not(trained):
    logged = [json.loads(line)["step"] for line in (trained / "steps").read_text().splitlines()]
    assert sorted(set(logged)) == list(range(1, max(logged) + 1))
    assert len(logged) - max(logged) <= 4  # checkpoint_every
    scores = [pq.read_table(trained / name / "data/pairs.parquet").to_pylist() for name in ("whole", "killed")]
    for one, two in zip(*scores, strict=True):
        assert one["chosen_score"] == pytest.approx(two["chosen_score"], abs=0.05)
    assert Store(f"{trained}/killed").manifest().figures["pair_accuracy"] > 0.7
    page = (trained / "killed" / "report.html").read_text()
    assert "Bad cases" in page
    assert "on training prompts held out, a pair" in page
    assert not (trained / "killed" / "train").exists()


def test_texts_are_scored_as_the_library_scores_them(trained, ray_cluster, tmp_path):
    pairs, _ = rows()
    texts = write(
        tmp_path / "texts.jsonl", [{"prompt": row["prompt"], "responses": [row["chosen"], "one"]} for row in pairs]
    )
    config = build(ScoreConfig, {"model": f"{trained}/whole/model", "texts": texts, "out": f"{tmp_path}/scores"})
    manifest = score.run(config)
    assert manifest.rows == 80
    found = Store(f"{tmp_path}/scores").read_data().to_pylist()
    model = RewardModel.load(trained / "whole" / "model")
    said = model.score_batch([(row["prompt"], row["response"]) for row in found])
    assert [row["score"] for row in found] == pytest.approx([each.score for each in said], abs=1e-5)
    assert found[0]["attribution_length"] == pytest.approx(said[0].attribution["length"], abs=1e-5)
    assert score.run(config) == manifest
    assert "Highest" in Path(f"{tmp_path}/scores/report.html").read_text()


def test_a_diagnosis_names_the_dimension_at_fault(trained, ray_cluster, files, tmp_path):  # noqa: F811
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows(10, seed=5)[0]]
    wrong = write(tmp_path / "wrong.jsonl", [*rows(30, seed=6)[0], *turned])
    config = build(DiagnoseConfig, {
        "model": f"{trained}/whole/model", "pairs": wrong, "ratings": files["ratings"], "out": f"{tmp_path}/found",
    })  # fmt: skip
    manifest = diagnose.run(config)
    figures = manifest.figures
    assert 0.55 < figures["pair_accuracy"] < 0.9
    assert figures["agreement"]["goodness"]["spearman"] > 0.7
    assert figures["swap"]["mirrored"] < 1e-5
    cases = json.loads(Path(f"{tmp_path}/found/data/bad_cases.json").read_text())
    assert sum(group["pairs"] for group in cases) >= 9
    assert sum(group["share"] for group in cases) == pytest.approx(1.0)
    assert "Bad cases" in Path(f"{tmp_path}/found/report.html").read_text()
