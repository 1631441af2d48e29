"""What a sweep refuses before any trial starts, and what the ready spaces hold."""

import json

import pytest
import yaml

from raylm import config as configs
from raylm.classify.config import ClassifierConfig
from raylm.config import build, load
from raylm.errors import UserError
from raylm.sweep import stages, tuner
from raylm.sweep.config import SweepConfig

BASE = {"train": "texts.jsonl", "freeze": True}


def sweep(**changes):
    data = {
        "stage": "train-classifier", "base": BASE, "space": {"head_lr": {"loguniform": [1e-3, 1e-1]}},
        "objectives": ["dev_nll"],
    }  # fmt: skip
    return build(SweepConfig, data | changes)


def check(**changes):
    made = sweep(**changes)
    return stages.check(made, tuner.points(made))


def test_objectives_take_their_direction_from_the_stage_unless_told():
    found = check(objectives=["dev_nll", {"metric": "dev_accuracy"}, {"metric": "loss", "mode": "max", "reference": 2}])
    assert [(each.metric, each.mode, each.reference) for each in found] == [
        ("dev_nll", "min", None), ("dev_accuracy", "max", None), ("loss", "max", 2.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {"head_rl": {"uniform": [0, 1]}}}, r"space\.head_rl: head_rl is no key .*did you mean head_lr\?"),
        ({"space": {"soft.alfa": {"uniform": [0, 1]}}}, r"space\.soft\.alfa.*did you mean soft\.alpha\?"),
        ({"space": {"lr.x": {"uniform": [0, 1]}}}, r"space\.lr\.x: lr\.x is no key"),
        ({"space": {"workers": {"choice": [1, 2]}}}, r"space\.workers: workers says how or where a run runs"),
        ({"space": {"train": {"choice": ["a", "b"]}}}, r"space\.train: train says how or where"),
        ({"space": {"head_lr": {"uniform": [-1, -0.5]}}}, r"train-classifier with head_lr=-0\.\d+: head_lr: .*greater"),
        ({"objectives": ["dev_f1"]}, r"never reports 'dev_f1'; did you mean dev_macro_f1\?"),
        ({"objectives": ["forgetting"]}, r"never reports 'forgetting'.* It reports loss, dev_accuracy"),
        ({"objectives": ["macro_f1"]}, "never reports 'macro_f1'"),  # of the test texts
        ({"objectives": ["loss", "loss"]}, "a metric is there twice"),
        ({"objectives": []}, "objectives"),
        ({"space": {}}, "space"),
        ({"stage": "explore"}, "'explore' cannot be swept; finetune, train-classifier.* can"),
        ({"base": {"freeze": True}}, "train is required"),
        ({"base": {**BASE, "out": "x"}}, r"base\.out: every trial has a directory of its own"),
        ({"base": {**BASE, "epoch": 1}}, r"unknown key epoch; did you mean epochs"),
        ({"search": {"kind": "grid"}}, "search.kind=grid: head_lr is loguniform, which has no end"),
        ({"space": {"lr": {"grid": [1.0]}}}, r"space\.lr is a grid, and search\.kind=random draws points; use choice"),
        (
            {"space": {"lr": {"grid": [1.0, 2.0]}}, "search": {"kind": "grid"}, "scheduler": {"kind": "asha"}},
            "tries every point to the end, and scheduler.kind=asha would not",
        ),
        ({"search": {"kind": "optuna"}, "scheduler": {"kind": "pbt"}}, "scheduler.kind=pbt chooses points itself"),
        ({"search": {"trials": 3}, "scheduler": {"kind": "pbt"}}, "a population of 3 is too small"),
        ({"scheduler": {"kind": "asha", "grace": 100}}, "scheduler.grace"),
        (
            {
                "stage": "train-reward",
                "base": {"pairs": "x"},
                "scheduler": {"kind": "asha"},
                "objectives": ["dev_loss"],
            },
            "train-reward reports its measures at the end alone.*use scheduler.kind=none",
        ),
    ],
)
def test_bad_input_is_named(changes, words):
    with pytest.raises(UserError, match=words):
        check(**changes)


def test_what_a_trial_reports_depends_on_its_config():
    space = {"lr": {"loguniform": [1e-5, 1e-3]}}
    for base, words in (({}, "never reports 'forgetting'.*watch.chains"), ({"watch": {"chains": "held.jsonl"}}, "")):
        made = build(SweepConfig, {"stage": "finetune", "base": base, "space": space, "objectives": ["forgetting"]})
        if not words:
            assert stages.check(made, tuner.points(made))[0].mode == "min"
            continue
        with pytest.raises(UserError, match=words):
            stages.check(made, tuner.points(made))


def test_points_are_the_same_for_a_seed_and_never_twice():
    assert tuner.points(sweep(seed=3)) == tuner.points(sweep(seed=3)) != tuner.points(sweep(seed=4))
    small = sweep(space={"epochs": {"choice": [1, 2, 3]}}, search={"trials": 16})
    assert sorted(point["epochs"] for point in tuner.points(small)) == [1, 2, 3]
    grid = sweep(space={"epochs": {"grid": [1, 2]}, "soft.alpha": {"choice": [0.1, 0.2]}}, search={"kind": "grid"})
    assert len(tuner.points(grid)) == 4


def test_a_trials_config_is_one_that_the_verb_reads_back(tmp_path):
    made = stages.trial_config(sweep(), {"soft.alpha": 0.3, "soft.kind": "uniform"}, "here")
    (tmp_path / "best.yaml").write_text(configs.to_yaml(made))
    assert load(ClassifierConfig, [str(tmp_path / "best.yaml")]) == made


@pytest.mark.parametrize(
    ("name", "base", "keys"),
    [
        (
            "isolation",
            {"order": "sequential", "tasks": [{"name": "a", "chains": "a", "eval_chains": "b"}], "workers": 1},
            {"protect", "refresh_every", "warmup", "scope", "on_release"},
        ),
        ("smoothing", BASE, {"alpha", "share", "mode", "temperature"}),
    ],
)
def test_the_ready_spaces_fit_their_stages(name, base, keys):
    made = load(SweepConfig, [f"jobs/configs/sweeps/{name}.yaml", f"base={json.dumps(base)}"])
    assert keys <= {key.rpartition(".")[2] for key in made.space}
    assert len(stages.check(made, tuner.points(made))) == 2


def test_the_verb_may_be_the_first_argument(tmp_path):
    from raylm.cli import VERBS

    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"space": {"lr": {"choice": [1.0]}}, "objectives": ["loss"]}))
    given = [str(tmp_path / "sweep.yaml"), "seed=2"]
    resolved = VERBS["sweep"].load(["finetune", *given])
    assert (resolved.stage, resolved.seed) == ("finetune", 2)
    with pytest.raises(UserError, match="stage is required"):
        VERBS["sweep"].load(given)


DATA = {
    "finetune": {"watch": {"chains": "held.jsonl"}}, "train-classifier": {"train": "x"}, "train-reward": {"pairs": "x"},
    "train-retriever": {"data": "x"},
}  # fmt: skip


@pytest.mark.parametrize("stage", sorted(DATA))
def test_every_stage_that_trains_can_be_swept(stage):
    """Its config names measures that no test split enters, and has what a sweep asks of workers."""
    assert stage in stages.sweepable()
    space = {"seed": {"choice": [0, 1]}}
    made = build(SweepConfig, {"stage": stage, "base": DATA[stage], "space": space, "objectives": ["loss"]})
    assert stages.check(made, tuner.points(made))[0].mode == "min"
    config = stages.base_config(made)
    assert set(config.measures().values()) <= {"min", "max"}
    assert not [name for name in config.measures() if "test" in name]
    assert config.workers >= 1
    assert config.cpus_per_worker > 0
    assert config.gpus_per_worker >= 0
