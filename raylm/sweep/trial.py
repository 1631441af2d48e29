"""What Ray Tune runs for a trial: the stage's own run, whose looks become Tune's reports.

The driver of a trial waits for a Ray Train run with workers of its own. A trial's directory is named by what it
computes, so one that is started again, in this sweep or by a sweep that goes on, continues from its checkpoints, or
returns at once where it is done.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylm import telemetry
from raylm.config import config_hash
from raylm.errors import UserError
from raylm.storage import MANIFEST, Store
from raylm.sweep import space as spaces
from raylm.sweep import stages
from raylm.sweep.config import SweepConfig
from raylm.sweep.space import Point


@dataclass(frozen=True, slots=True)
class Job:
    """What all trials of a sweep share."""

    sweep: SweepConfig
    root: str
    """The sweep's directory, for processes in other working directories."""
    folder: str
    """Working directory of the sweep's driver, from which paths in `base` are meant."""
    objectives: tuple[str, ...]
    session: str
    """Which start of the sweep this is."""


def point_of(sweep: SweepConfig, params: dict[str, Any]) -> Point:
    """The point in what Tune calls the config of a trial."""
    return spaces.decoded(sweep.space, params) if sweep.search.kind == "optuna" else params["point"]


def run(params: dict[str, Any], job: Job) -> None:
    """Run a trial to its end, or to where Tune stops it; called by Tune.

    Raises:
        UserError: the stage's own, or an objective that is not a finite number.
    """
    from ray import tune

    from raylm.cli import VERBS
    from raylm.train import job as training

    # How long Tune waits for the training of a trial that it stops; if that does not end, the sweep stands still.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "120")
    if os.path.isdir(job.folder):
        os.chdir(job.folder)  # Tune has moved into the trial's
    sweep, point = job.sweep, point_of(job.sweep, params)
    key = config_hash(stages.trial_config(sweep, point, "x"))[:12]
    if sweep.scheduler.kind == "pbt":
        out = _from_checkpoint(f"{job.root}/trials/{key}")
    else:
        out = f"{job.root}/trials/{_claimed(job, key, tune.get_context().get_trial_id())}"
    reports = _Reports(point, out, sweep.scheduler.kind == "pbt")
    with training.observed(reports.see):
        manifest = VERBS[sweep.stage].run(stages.trial_config(sweep, point, out))
    measures: dict[str, float] = manifest.figures["measures"]
    for name in job.objectives:
        if name not in measures:
            raise UserError(f"{out}: the run has not reported {name!r}, but {', '.join(measures)}")
        if not math.isfinite(measures[name]):
            raise UserError(f"{out}: {name} is {measures[name]}")
    reports.end(measures)


class _Reports:
    """Passes a run's looks on to Tune."""

    def __init__(self, point: Point, out: str, checkpoints: bool) -> None:
        """Report with checkpoints where the population's other members may go on from them."""
        self.shared = {"point": json.dumps(point), "directory": out}
        self.folder = Path(out) / "train" if checkpoints else None
        self.waiting: dict[str, Any] = {}

    def see(self, row: dict[str, Any], steps: int) -> None:
        """Take the row of a step. The last look is left to `end`, so that no run is stopped when it is all but done."""
        from ray import tune

        if "measures" in row and row["step"] < steps:
            self.waiting = {**self._row(row["measures"], row["step"]), "percent": 100 * row["step"] / steps}
        if not self.waiting:
            return
        if self.folder is None:
            tune.report(self.waiting)
        elif (newest := _newest(self.folder)) is None or newest[1] < self.waiting["step"]:
            return  # until the checkpoint of the look is there
        else:
            tune.report(self.waiting, checkpoint=tune.Checkpoint.from_directory(newest[0]))
        self.waiting = {}

    def end(self, measures: dict[str, float]) -> None:
        """Report what the finished run has."""
        from ray import tune

        telemetry.count("raylm_trials_finished")
        tune.report({**self._row(measures, -1), "percent": 100.0, "finished": 1})

    def _row(self, measures: dict[str, float], step: int) -> dict[str, Any]:
        return {**measures, **self.shared, "step": step, "finished": 0}


def _claimed(job: Job, key: str, trial: str) -> str:
    """Name of a trial's directory: its key, or one of its own while another trial at the same point still runs.

    Optuna may suggest a point twice. The claim of an earlier session is a lost trial's, which is gone on with.
    """
    store, claim = Store(job.root), {"session": job.session, "trial": trial}
    name = f"claims/{key}.json"
    if store.exists(name) and not store.exists(f"trials/{key}/{MANIFEST}"):
        held = store.read_json(name)
        if held["session"] == job.session and held["trial"] != trial:
            return f"{key}-{trial}"
    store.write_json(name, claim)
    return key


def _newest(folder: Path) -> tuple[Path, int] | None:
    from raylm.train import checkpoint

    found = checkpoint.newest(folder) if folder.is_dir() else None
    return None if found is None else (found, checkpoint.step_of(found))


def _from_checkpoint(out: str) -> str:
    """Directory of a member of a population, which goes on from the checkpoint that Tune hands over, if it does.

    The checkpoint may be another member's. So the directory is named by its step too: a member that comes to the same
    parameters a second time starts from where it is now.
    """
    from ray import tune

    from raylm.train import checkpoint

    handed = tune.get_checkpoint()
    if handed is None:
        return f"{out}-{tune.get_context().get_trial_id().rsplit('_', 1)[-1]}-0"
    with handed.as_directory() as folder:
        out = f"{out}-{tune.get_context().get_trial_id().rsplit('_', 1)[-1]}-{checkpoint.step_of(Path(folder))}"
        target = Path(out, "train", "checkpoint_handed_over")
        if not target.exists():
            partial = target.with_name("partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(folder, partial)
            partial.rename(target)
    return out
