"""Directories of trials: named by what they compute, shared by nobody at the same time."""

from raylm.config import build
from raylm.storage import Store
from raylm.sweep.config import SweepConfig
from raylm.sweep.trial import Job, _claimed, point_of

SWEEP = {
    "stage": "train-classifier", "base": {"train": "x"}, "objectives": ["loss"],
    "space": {"soft.kind": {"choice": ["none", "uniform"]}, "lr": {"loguniform": [1e-5, 1e-3]}},
}  # fmt: skip


def job(root, session):
    return Job(build(SweepConfig, SWEEP), str(root), ".", ("loss",), session)


def test_a_directory_is_claimed_by_one_running_trial(tmp_path):
    first, again = job(tmp_path, "one"), job(tmp_path, "two")
    assert _claimed(first, "k", "a1") == "k"
    assert _claimed(first, "k", "a1") == "k"  # started again after its driver died
    assert _claimed(first, "k", "b2") == "k-b2"  # the same point, while the first runs
    assert _claimed(again, "k", "c3") == "k"  # lost with an earlier session: gone on with
    Store(str(tmp_path)).write_json("trials/k/manifest.json", {})
    assert _claimed(again, "k", "d4") == "k"  # done: nothing is run again


def test_what_optuna_says_and_what_we_drew_are_the_same_point(tmp_path):
    drawn = {"soft.kind": "uniform", "lr": 1e-4}
    assert point_of(build(SweepConfig, SWEEP), {"point": drawn}) == drawn
    suggesting = build(SweepConfig, SWEEP | {"search": {"kind": "optuna"}})
    assert point_of(suggesting, {"soft.kind": '"uniform"', "lr": 1e-4}) == drawn
