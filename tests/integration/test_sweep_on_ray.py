"""Sweeps on Ray Tune over Ray Train: killed and gone on with, stopped early, and as a population."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raylm import config as configs
from raylm.classify import stage as classifier
from raylm.classify.config import ClassifierConfig
from raylm.config import build
from raylm.errors import UserError
from raylm.storage import Store
from raylm.sweep import run as sweeps
from raylm.sweep.config import SweepConfig
from raylm.train import job as training

ROOT = Path(__file__).parent.parent.parent
PLACES, BEASTS = ("harbour", "station", "market", "museum"), ("otter", "falcon", "badger", "salmon")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [
        {"id": f"{word}-{n}", "text": f"{asked} {word} number {n}", "label": label}
        for label, words, asked in (("where", PLACES, "where is the"), ("what", BEASTS, "what eats the"))
        for word in words
        for n in range(3)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def settings(texts, out, **changes):
    base = {"train": texts, "freeze": True, "epochs": 5, "batch_size": 4, "max_failures": 0, "dev_share": 0.25}
    data = {"stage": "train-classifier", "base": base, "out": str(out), "objectives": ["dev_nll"]}
    return data | changes


def trials(out):
    rows = Store(str(out)).read_table("data/trials.parquet").to_pylist()
    return [{**row, "point": json.loads(row["point"]), "measures": json.loads(row["measures"])} for row in rows]


def start(tmp_path, data):
    (tmp_path / "sweep.json").write_text(json.dumps(data))
    command = [sys.executable, "-m", "jobs.sweep", "train-classifier", str(tmp_path / "sweep.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def test_a_killed_sweep_goes_on_and_its_best_config_runs_as_it_is(ray_cluster, texts, tmp_path):
    out = tmp_path / "out"
    data = settings(
        texts, out, space={"head_lr": {"choice": [1e-4, 3e-2]}}, search={"kind": "grid"},
        objectives=["dev_nll", "loss"], max_concurrent=1,
    )  # fmt: skip
    job = start(tmp_path, data)
    deadline = time.monotonic() + 400
    while not (done := list(out.glob("trials/*/manifest.json"))):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1.0)  # into the second trial
    job.send_signal(signal.SIGKILL)
    job.wait()
    before = {path: path.stat().st_mtime_ns for path in done}
    again = start(tmp_path, data)
    printed, _ = again.communicate(timeout=500)
    assert again.returncode == 0, printed
    assert {path: path.stat().st_mtime_ns for path in done} == before
    rows = trials(out)
    assert [row["state"] for row in rows] == ["finished"] * 2
    assert [row["point"]["head_lr"] for row in rows] == [1e-4, 3e-2]
    assert len(list(out.glob("trials/*"))) == 2
    manifest = Store(str(out)).manifest()
    best = rows[manifest.figures["best_trial"]]
    assert best["point"]["head_lr"] == 3e-2
    taken = configs.load(ClassifierConfig, [str(out / "best.yaml")])
    assert (taken.head_lr, taken.train, taken.epochs) == (best["point"]["head_lr"], texts, 5)
    repeated = classifier.run(taken)
    assert repeated.figures["measures"] == pytest.approx(best["measures"], rel=1e-4)
    html = (out / "report.html").read_text()
    for words in ("Front", "Parameters", "Trials by dev nll", "hypervolume"):
        assert words in html


def test_what_an_observer_raises_ends_the_run_and_frees_its_place(ray_cluster, texts, tmp_path):
    import ray

    seen = []

    def see(row, steps):
        seen.append(row["step"])
        if row["step"] >= 3:
            raise SystemExit(0)

    base = {"train": texts, "freeze": True, "epochs": 2000, "batch_size": 4, "dev_share": 0.25}
    with training.observed(see), pytest.raises(SystemExit):
        classifier.run(build(ClassifierConfig, base | {"out": str(tmp_path / "out")}))
    assert 3 <= seen[-1] < 100
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_the_worst_are_stopped_early_and_optuna_learns_from_all(ray_cluster, texts, tmp_path):
    space = {"soft.kind": {"choice": ["none"]}, "head_lr": {"loguniform": [1e-6, 0.1]}}
    # So long that a stopped training, were it left to itself, would still go on when the next trial takes its place.
    base = {"train": texts, "freeze": True, "epochs": 60, "batch_size": 4, "max_failures": 0, "dev_share": 0.25}
    made = build(SweepConfig, settings(
        texts, tmp_path / "out", space=space, search={"kind": "optuna", "trials": 5, "startup": 4}, keep="front",
        scheduler={"kind": "asha", "grace": 5, "reduction": 2}, base=base,
    ))  # fmt: skip
    manifest = sweeps.run(made)
    rows = trials(tmp_path / "out")
    stopped = [row for row in rows if row["state"] == "stopped"]
    assert stopped
    assert all(row["percent"] < 100 for row in stopped)
    finished = [row["measures"]["dev_nll"] for row in rows if row["state"] == "finished"]
    assert manifest.figures["best"]["dev_nll"] == min(finished)
    assert len(list((tmp_path / "out").glob("trials/*"))) == 1  # keep=front
    assert sweeps.run(made) == manifest


@pytest.mark.slow
def test_a_population_goes_on_from_checkpoints_of_its_best(ray_cluster, texts, tmp_path):
    base = {"train": texts, "freeze": True, "epochs": 6, "batch_size": 4, "checkpoint_every": 1, "dev_share": 0.25}
    made = build(SweepConfig, settings(
        texts, tmp_path / "out", base=base, space={"head_lr": {"loguniform": [1e-5, 0.05]}}, search={"trials": 4},
        scheduler={"kind": "pbt", "interval": 15, "quantile": 0.25},
    ))  # fmt: skip
    manifest = sweeps.run(made)
    assert manifest.figures["finished"] == 4
    # KEY-TRIAL-STEP, where the key is that of the parameters: somebody went on with others than it began with.
    lives = {tuple(path.parent.name.split("-")) for path in (tmp_path / "out").glob("trials/*/started.json")}
    assert len({(trial, key) for key, trial, _ in lives}) > 4
    assert any(int(step) > 0 for *_, step in lives)
    for row in trials(tmp_path / "out"):
        steps = Store(row["directory"]).read_table("data/steps.parquet").column("step").to_pylist()
        assert steps == list(range(1, len(steps) + 1))  # whole histories, wherever they began


@pytest.mark.slow
def test_trials_that_fail_are_named_and_too_many_refuse_the_sweep(ray_cluster, texts, tmp_path):
    base = {"train": texts, "freeze": True, "epochs": 1, "batch_size": 4, "max_overlong_share": 0.0, "max_failures": 0}
    space = {"max_length": {"grid": [4, 64]}}
    data = settings(texts, tmp_path / "out", base=base, space=space, search={"kind": "grid"}, max_failures=0)
    with pytest.raises(UserError, match=r"1 of 2 trials failed and 1 finished.*more tokens than max_length=4"):
        sweeps.run(build(SweepConfig, data))
    manifest = sweeps.run(build(SweepConfig, data | {"max_failed_share": 0.5}))
    assert (manifest.figures["failed"], manifest.figures["finished"]) == (1, 1)
    failed = trials(tmp_path / "out")[0]
    assert "max_length=4" in failed["error"]
    assert "Failed trials" in (tmp_path / "out" / "report.html").read_text()


def test_what_does_not_fit_is_refused_before_a_trial_starts(ray_cluster, texts, tmp_path):
    base = {"train": texts, "workers": 4, "batch_size": 4}
    made = build(SweepConfig, settings(texts, tmp_path / "out", base=base, space={"lr": {"choice": [1e-4, 1e-5]}}))
    with pytest.raises(UserError, match="no trial fits on the cluster: it needs 4 workers"):
        sweeps.run(made)
    assert not list((tmp_path / "out").glob("trials/*"))
