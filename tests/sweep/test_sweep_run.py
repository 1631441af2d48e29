"""From trials that ended to tables, front, configs and the page, without Ray."""

import json

import numpy as np
import pytest

from raylm import report
from raylm.classify.config import ClassifierConfig
from raylm.config import build, load
from raylm.errors import UserError
from raylm.storage import StageRun
from raylm.sweep import run as sweeps
from raylm.sweep import stages, tuner
from raylm.sweep.config import SweepConfig
from raylm.sweep.pareto import front


def sweep(out, **changes):
    space = {
        "head_lr": {"loguniform": [1e-3, 1e-1]}, "soft.kind": {"choice": ["none", "uniform"]},
        "soft.alpha": {"uniform": [0.0, 1.0], "when": {"soft.kind": "uniform"}},
    }  # fmt: skip
    data = {
        "stage": "train-classifier", "base": {"train": "texts.jsonl"}, "space": space, "search": {"trials": 12},
        "objectives": ["dev_nll", "dev_accuracy"], "out": str(out), "max_failed_share": 0.5,
    }  # fmt: skip
    return build(SweepConfig, data | changes)


def ended(made, **states):
    """Trials at the sweep's points; `states` by number say how those ended that did not finish."""
    random = np.random.default_rng(0)
    trials = []
    for number, point in enumerate(tuner.points(made)):
        measures = {"dev_nll": float(random.random()), "dev_accuracy": float(random.random()), "loss": 1.0}
        state = states.get(f"t{number}", "finished")
        reports = [{"percent": 50.0, "point": json.dumps(point), "measures": json.dumps(measures)}] * 2
        trials.append(sweeps.Trial(
            number, state, point, measures, 100.0 if state == "finished" else 30.0, 2.0, f"{made.out}/trials/k{number}",
            "its texts are too long" if state == "failed" else "", reports,
        ))  # fmt: skip
    return trials


def finish(made, trials):
    stage = StageRun("sweep", made, made.out, {"base": "x"})
    for each in trials:
        stage.store.write_bytes(f"trials/{each.directory.rsplit('/', 1)[-1]}/model", b"weights")
    sweeps.finish(stage, made, stages.check(made, tuner.points(made)), trials, at_once=2)
    return stage


def test_a_front_of_finished_trials_and_a_config_for_each_of_it(tmp_path):
    made = sweep(tmp_path / "out", keep="front")
    trials = ended(made, t3="stopped", t5="failed")
    trials[3].measures["dev_nll"] = trials[5].measures["dev_nll"] = -9.0  # neither finished
    stage = finish(made, trials[::-1])
    figures, store = stage.finished.figures, stage.store
    assert {key: figures[key] for key in ("trials", "finished", "stopped", "failed")} == {
        "trials": 12, "finished": 10, "stopped": 1, "failed": 1,
    }  # fmt: skip
    done = [each for each in trials if each.state == "finished"]
    values = np.array([[each.measures["dev_nll"], -each.measures["dev_accuracy"]] for each in done])
    assert figures["front"] == [done[place].number for place in np.flatnonzero(front(values))]
    assert figures["best_trial"] in figures["front"]
    assert figures["hypervolume"] > 0
    assert figures["reference"]["dev_nll"] == max(each.measures["dev_nll"] for each in done)
    assert store.names("front") == [f"{number:05d}.yaml" for number in figures["front"]]
    assert store.names("trials") == sorted(f"k{number}" for number in figures["front"])
    for name, number in [
        ("best.yaml", figures["best_trial"]),
        ("front/" + store.names("front")[0], figures["front"][0]),
    ]:
        taken = load(ClassifierConfig, [f"{made.out}/{name}"])
        assert taken.head_lr == trials[number].point["head_lr"]
        assert not (tmp_path / taken.out).exists()


def test_the_page_shows_all_of_it(tmp_path):
    made = sweep(tmp_path / "out")
    stage = finish(made, ended(made, t3="stopped", t5="failed"))
    report.for_stage("sweep", stage.store)
    page = (tmp_path / "out" / "report.html").read_text()
    for words in (
        "Trials by dev nll", "Trials by dev accuracy", "Importance for dev nll", "Failed trials", "too long",
        "hypervolume", "Without an importance, as not every trial has them: soft.alpha", "10 finished, 1 stopped",
    ):  # fmt: skip
        assert words in page
    assert len(stage.store.names("trials")) == 12  # keep=all


def test_one_objective_has_a_best_and_a_given_reference_counts(tmp_path):
    made = sweep(tmp_path / "out", objectives=[{"metric": "dev_nll", "reference": 2.0}])
    trials = ended(made)
    figures = finish(made, trials).finished.figures
    best = min(trials, key=lambda each: each.measures["dev_nll"])
    assert figures["best_trial"] == best.number
    assert figures["hypervolume"] == pytest.approx(2.0 - best.measures["dev_nll"])


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ({f"t{number}": "failed" for number in range(7)}, "7 of 12 trials failed and 5 finished.*texts are too long"),
        ({f"t{number}": "stopped" for number in range(12)}, "0 of 12 trials failed and 0 finished.*stopped early"),
    ],
)
def test_too_few_finished_trials_are_no_result(tmp_path, states, words):
    made = sweep(tmp_path / "out")
    with pytest.raises(UserError, match=words):
        finish(made, ended(made, **states))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_another_base_is_another_sweep(tmp_path):
    made = sweep(tmp_path / "out")
    finish(made, ended(made))
    other = made.model_copy(update={"seed": 1})
    with pytest.raises(UserError, match="holds a run with other settings"):
        StageRun("sweep", other, other.out, {"base": "x"})
    with pytest.raises(UserError, match=r"inputs\.base"):
        StageRun("sweep", made, made.out, {"base": "y"})
