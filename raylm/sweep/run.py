"""The sweep stage: trials by Ray Tune; a table of trials, their front, and configs that the stage's verb takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raylm import config as configs
from raylm.errors import UserError
from raylm.storage import Manifest, StageRun, Store
from raylm.sweep import capacity, pareto, stages, tuner
from raylm.sweep.config import SweepConfig
from raylm.sweep.importance import importances
from raylm.sweep.stages import Objective
from raylm.sweep.trial import point_of
from raylm.units import nodes

BEST = "best.yaml"
"""Config of the best trial, in the artefact."""


@dataclass(slots=True)
class Trial:
    """How one trial ended."""

    number: int
    state: str
    """finished, stopped (by the scheduler) or failed."""
    point: dict[str, Any]
    measures: dict[str, float]
    """The last that were reported."""
    percent: float
    """Of its steps."""
    seconds: float
    directory: str
    error: str
    reports: list[dict[str, Any]]
    """percent, point and measures of every report."""
    on_front: bool = False


def run(sweep: SweepConfig) -> Manifest:
    """Run a sweep; a second call returns at once, an interrupted one goes on and repeats no finished trial.

    Raises:
        UserError: as `stages.check`; no trial fits on the cluster; too many trials failed; or an out directory of
            another run.
    """
    from raylm import report

    stages.config_class(sweep)
    tried = tuner.points(sweep)
    objectives = stages.check(sweep, tried)
    base = stages.base_config(sweep)
    stage = StageRun("sweep", sweep, sweep.out, {"base": configs.config_hash(base)})
    if stage.finished is None:
        at_once = capacity.concurrent(nodes(), _need(sweep, tried), sweep.max_concurrent)
        grid = tuner.fit(sweep, objectives, tried, at_once, stage.store)
        finish(stage, sweep, objectives, [_trial(sweep, result) for result in grid if _begun(result)], at_once)
    report.for_stage("sweep", stage.store)
    assert stage.finished is not None
    return stage.finished


def finish(
    stage: StageRun, sweep: SweepConfig, objectives: Sequence[Objective], trials: list[Trial], at_once: int
) -> None:
    """Write tables, configs and the manifest of a sweep whose trials are over.

    Raises:
        UserError: too many trials failed, or none finished.
    """
    trials.sort(key=lambda each: each.number)
    done, failed = ([each for each in trials if each.state == state] for state in ("finished", "failed"))
    if not done or len(failed) > sweep.max_failed_share * len(trials):
        first = failed[0].error if failed else "every trial was stopped early"
        raise UserError(
            f"{len(failed)} of {len(trials)} trials failed and {len(done)} finished; max_failed_share="
            f"{sweep.max_failed_share}; first: {first} (the same command tries the failed ones again)"
        )
    figures = _figures(sweep, objectives, done)
    for place in figures["front"]:
        next(each for each in done if each.number == place).on_front = True
    store = stage.store
    best = next(each for each in done if each.number == figures["best_trial"])
    store.write_bytes(BEST, _config_file(sweep, best, "best").encode())
    for each in (each for each in done if each.on_front):
        store.write_bytes(
            f"front/{each.number:05d}.yaml", _config_file(sweep, each, f"front-{each.number:05d}").encode()
        )
    _write_tables(store, trials)
    if sweep.keep == "front":
        kept = {each.directory.rsplit("/", 1)[-1] for each in done if each.on_front}
        for name in set(store.names("trials")) - kept:
            store.remove(f"trials/{name}")
    counts = {"trials": len(trials), "finished": len(done), "failed": len(failed)}
    counts["stopped"] = len(trials) - len(done) - len(failed)
    spent = sum(each.seconds for each in trials)
    stage.finish(
        len(trials),
        timing={"seconds": spent / at_once, "trial_seconds": spent, "at_once": at_once},
        figures={**counts, **figures},
        folders=("data", "front"),
        files=(BEST,),
    )
    store.remove(tuner.NAME)
    store.remove("claims")


def _figures(sweep: SweepConfig, objectives: Sequence[Objective], done: list[Trial]) -> dict[str, Any]:
    """Front, best, hypervolume and importances of the finished trials."""
    modes = tuple(objective.mode for objective in objectives)
    values = np.array([[each.measures[objective.metric] for objective in objectives] for each in done])
    losses = pareto.losses(values, modes)
    front = np.flatnonzero(pareto.front(losses))
    best = done[front[pareto.compromise(losses[front])]]
    given = [objective.reference for objective in objectives]
    worst = pareto.losses(losses.max(0)[None], modes)[0]
    reference = np.array([bad if at is None else at for at, bad in zip(given, worst, strict=True)])
    names = [objective.metric for objective in objectives]
    return {
        "objectives": [asdict(objective) for objective in objectives],
        "best_trial": best.number,
        "best": {"point": best.point, **{name: best.measures[name] for name in names}},
        "front": [done[place].number for place in front],
        "hypervolume": pareto.hypervolume(losses[front], pareto.losses(reference[None], modes)[0]),
        "reference": dict(zip(names, reference.tolist(), strict=True)),
        "importances": {
            name: importances(sweep.space, [each.point for each in done], values[:, place].tolist())
            for place, name in enumerate(names)
        },
    }


def _config_file(sweep: SweepConfig, trial: Trial, name: str) -> str:
    out = f"{sweep.out}/{name}"
    head = f"# Trial {trial.number}, for: raylm {sweep.stage} {BEST}\n"
    head += "".join(f"# {key}: {value:.6g}\n" for key, value in trial.measures.items())
    return head + configs.to_yaml(stages.trial_config(sweep, trial.point, out))


def _write_tables(store: Store, trials: Sequence[Trial]) -> None:
    rows, reports = [], []
    for each in trials:
        row = asdict(each)
        reports += [{"number": each.number, **report} for report in row.pop("reports")]
        rows.append(row | {name: json.dumps(row[name]) for name in ("point", "measures")})
    store.write_table("data/trials.parquet", pa.Table.from_pylist(rows))
    store.write_table("data/reports.parquet", pa.Table.from_pylist(reports))


def _trial(sweep: SweepConfig, result: Any) -> Trial:
    """A row from Tune's result."""
    last = result.metrics or {}
    frame = result.metrics_dataframe
    names = {name for name in last if isinstance(last[name], (int, float))} & _measured(sweep, result)
    reports = [] if frame is None else [
        {"percent": float(row["percent"]), "point": row["point"],
         "measures": json.dumps({name: float(row[name]) for name in sorted(names)})}
        for row in frame.to_dict("records") if "percent" in row
    ]  # fmt: skip
    error = str(_root(result.error)) if result.error is not None else ""
    state = "failed" if error else "finished" if last.get("finished") else "stopped"
    return Trial(
        number=int(result.path.rsplit("/", 1)[-1].split("_")[2]),
        state=state,
        point=point_of(sweep, result.config),
        measures={name: float(last[name]) for name in sorted(names)},
        percent=float(last.get("percent", 0.0)),
        seconds=float(last.get("time_total_s", 0.0)),
        directory=str(last.get("directory", "")),
        error=" ".join(error.split())[:500],
        reports=reports,
    )


def _begun(result: Any) -> bool:
    """Whether a trial got anywhere before the sweep's minutes were over."""
    return bool(result.metrics) or result.error is not None


def _measured(sweep: SweepConfig, result: Any) -> set[str]:
    trial: Any = stages.trial_config(sweep, point_of(sweep, result.config), "x")
    return set(trial.measures())


def _root(error: BaseException) -> BaseException:
    """The error below Ray's wrapping."""
    seen: BaseException = error
    while (cause := getattr(seen, "cause", None) or seen.__cause__) is not None:
        seen = cause
    return seen


def _need(sweep: SweepConfig, tried: Sequence[dict[str, Any]]) -> capacity.Need:
    trials: list[Any] = [stages.trial_config(sweep, point, "x") for point in tried]
    return capacity.Need(
        workers=max(trial.workers for trial in trials),
        cpus=max(trial.cpus_per_worker for trial in trials),
        gpus=max(trial.gpus_per_worker for trial in trials),
        driver_cpus=sweep.driver_cpus,
    )
