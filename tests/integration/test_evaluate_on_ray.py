"""The evaluate stage on real Ray, with the scripted engine and with a real (random) tiny model."""

import hashlib
import json
from pathlib import Path

import pytest

from raylm.config import build, to_yaml
from raylm.errors import UserError
from raylm.evaluation.config import EvaluateConfig
from raylm.evaluation.run import run
from raylm.records import Judgement, from_table
from raylm.storage import Store

pytestmark = pytest.mark.usefixtures("ray_cluster")

SUMS = {"task": "chain_sum", "checker": "number"}  # the task's own checker loads all tasks, once for each actor
SOURCES = {
    "in_domain": [{**SUMS, "name": "chain_sum", "limit": 12, "params": {"min_terms": 2, "max_terms": 3}}],
    "out_of_domain": [{**SUMS, "name": "longer", "limit": 6, "params": {"min_terms": 5, "max_terms": 6}}],
}


def config(out, **changes):
    engine = {"kind": "scripted", "model": "micro", "script": {"accuracy": 0.8, **changes.pop("script", {})}}
    data = {
        "out": str(out),
        "suites": SOURCES,
        "engine": {**engine, **changes.pop("engine", {})},
        "compute": {"cpus": 1, "in_flight": 4},
        "max_tokens": 200,
        **changes,
    }
    return build(EvaluateConfig, data)


def rows_of(out):
    return from_table(Judgement, Store(str(out)).read_data())


def data_bytes(out):
    return {path.name: path.read_bytes() for path in sorted((Path(out) / "data").iterdir())}


@pytest.fixture(scope="module")
def whole(ray_cluster, tmp_path_factory):
    """An undisturbed evaluation with four samples a question, and its manifest."""
    out = tmp_path_factory.mktemp("whole") / "e"
    return out, run(config(out, samples=4))


@pytest.fixture(scope="module")
def weak(ray_cluster, tmp_path_factory):
    """An undisturbed evaluation of an engine that is mostly wrong."""
    out = tmp_path_factory.mktemp("weak") / "e"
    run(config(out, script={"accuracy": 0.2}))
    return out


def test_every_question_is_answered_in_order_and_counted(whole):
    out, manifest = whole
    rows = rows_of(out)
    suites = ["in_domain"] * 12 + ["out_of_domain"] * 6
    assert [(row.suite, row.sample) for row in rows] == [(suite, sample) for suite in suites for sample in range(4)]
    assert manifest.rows == 72
    for suite, figures in manifest.figures["suites"].items():
        greedy = [row for row in rows if row.suite == suite and row.sample == 0]
        assert figures["correct"] == sum(row.verdict == "correct" for row in greedy)
        assert figures["sampled"] == 3
    assert manifest.tokens["generated"] == sum(row.generated_tokens for row in rows)
    assert manifest.model["engine"] == "scripted"
    assert {row.verdict for row in rows} == {"correct", "wrong"}
    assert (out / "report.html").is_file()
    assert json.loads((out / "timing.json").read_text())["seconds"] > 0
    assert not (out / "parts").exists()


def test_a_finished_evaluation_is_not_run_again_and_equal_runs_are_equal(whole, tmp_path):
    out, first = whole
    stamp = (out / "manifest.json").stat().st_mtime_ns
    assert run(config(out, samples=4)) == first
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    second = run(config(tmp_path / "b", samples=4, compute={"cpus": 1, "in_flight": 1}))
    assert data_bytes(out) == data_bytes(tmp_path / "b")
    assert first == second
    with pytest.raises(UserError, match="other settings"):
        run(config(out, samples=3))


def test_a_better_model_is_compared_question_by_question(weak, tmp_path):
    after = run(config(tmp_path / "after", script={"accuracy": 1.0}, baseline=str(weak)))
    before_rows, rows = rows_of(weak), rows_of(tmp_path / "after")
    compared = after.figures["comparison"]["in_domain"]
    pairs = [(a, b) for a, b in zip(before_rows, rows, strict=True) if b.suite == "in_domain"]
    assert compared["questions"] == 12
    assert compared["fixed"] == sum(a.verdict != "correct" and b.verdict == "correct" for a, b in pairs)
    assert compared["broken"] == 0
    assert compared["after"] == 1.0
    assert compared["difference"] > 0
    assert compared["p_value"] < 0.05
    html = (tmp_path / "after" / "report.html").read_text(encoding="utf-8")
    assert "Fixed" in html
    assert "in domain" in html


def test_a_baseline_on_other_questions_is_refused_before_any_work(weak, tmp_path):
    other = {**SOURCES, "in_domain": [{**SOURCES["in_domain"][0], "seed": 7}]}
    with pytest.raises(UserError, match=r"12 only here .*12 only there"):
        run(config(tmp_path / "after", suites=other, baseline=str(weak)))
    assert not (tmp_path / "after").exists()
    with pytest.raises(UserError, match="no finished evaluation"):
        run(config(tmp_path / "after", baseline=str(tmp_path / "nowhere")))


def test_an_engine_that_dies_now_and_then_changes_nothing(weak, tmp_path):
    run(config(tmp_path / "shaky", script={"accuracy": 0.2, "fail_after": 5}))
    assert data_bytes(weak) == data_bytes(tmp_path / "shaky")


def test_a_prompt_without_room_for_a_response_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"18 of 18 prompts leave no room .* suites\.in_domain problem chain_sum-s0-000000"
    ):
        run(config(tmp_path / "e", engine={"context": 210}))
    assert not (tmp_path / "e" / "parts").exists()


def test_no_suite_is_refused(tmp_path):
    with pytest.raises(UserError, match="suites is empty"):
        run(config(tmp_path / "e", suites={}))


def test_an_incomplete_model_directory_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        run(config(tmp_path / "e", model=str(tmp_path / "model")))


def test_a_real_model_answers_reproducibly(tmp_path):
    real = {"engine": {"kind": "transformers", "model": "micro", "context": 400}, "max_tokens": 16, "samples": 3}
    first = run(config(tmp_path / "a", **real))
    run(config(tmp_path / "b", **real, compute={"cpus": 1, "in_flight": 1}))
    rows = rows_of(tmp_path / "a")
    assert len(rows) == 54
    assert all(
        0 < row.generated_tokens <= 16 and row.prompt_tokens > 0 for row in rows if row.finish_reason == "length"
    )
    assert first.model["engine"] == "transformers"
    greedy = [[row for row in rows_of(tmp_path / name) if row.sample == 0] for name in "ab"]
    assert greedy[0] == greedy[1]


def test_a_killed_driver_resumes_to_the_same_bytes(whole, start_job, tmp_path):
    out, undisturbed = whole
    killed = config(tmp_path / "killed", samples=4, script={"latency": 0.5}, compute={"cpus": 1, "in_flight": 2})
    (tmp_path / "killed.yaml").write_text(to_yaml(killed), encoding="utf-8")
    job = start_job("jobs.evaluate", tmp_path / "killed.yaml")
    parts = tmp_path / "killed" / "parts"
    job.kill_when(lambda: parts.exists() and len(list(parts.glob("*.parquet"))) >= 4)
    saved = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in parts.glob("*.parquet")}
    assert 4 <= len(saved) < 18
    assert not (tmp_path / "killed" / "manifest.json").exists()
    manifest = run(killed)
    # The cluster outlives its driver: what an actor finished before it was ended counts as well.
    assert len(saved) <= json.loads((tmp_path / "killed" / "timing.json").read_text())["resumed"] < 18
    assert data_bytes(tmp_path / "killed") == data_bytes(out)
    assert manifest == undisturbed
