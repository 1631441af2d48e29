"""What a sweep needs of a stage, and the configs of its trials.

A verb can be swept when its config class has `measures()`, which names the numbers that its runs report, and the fields
of its workers. Its workers send these numbers to the sink of `raylm.train.job.fit` as `measures` of a row, after every
look, and the manifest has the last ones under figures.measures. A stage that has them at its end alone says so with
`measured_on_the_way = False`, and cannot be swept by a scheduler.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from raylm import config as configs
from raylm.config import Config, Direction
from raylm.errors import UserError
from raylm.sweep import space as spaces
from raylm.sweep.config import SweepConfig
from raylm.sweep.space import Point
from raylm.train.job import Scaling


class Sweepable(Scaling, Protocol):
    """Config of a stage that a sweep can wrap."""

    @property
    def out(self) -> str: ...
    def measures(self) -> dict[str, Direction]: ...


@dataclass(frozen=True, slots=True)
class Objective:
    """A metric with the way that is better."""

    metric: str
    mode: Direction
    reference: float | None


def sweepable() -> list[str]:
    """Verbs that a sweep can wrap."""
    from raylm.cli import VERBS

    return [name for name, verb in VERBS.items() if hasattr(verb.config_class(), "measures")]


def config_class(sweep: SweepConfig) -> type[Config]:
    """Config class of the stage.

    Raises:
        UserError: there is no such stage, or it cannot be swept.
    """
    from raylm.cli import VERBS

    if sweep.stage not in sweepable():
        raise UserError(f"sweep: {sweep.stage!r} cannot be swept; {', '.join(sweepable())} can")
    return VERBS[sweep.stage].config_class()


def trial_config(sweep: SweepConfig, point: Point, out: str) -> Config:
    """Config of the run at a point.

    Raises:
        UserError: the stage's config refuses it; the message has the point.
    """
    data = spaces.merged(sweep.base, spaces.nested(point)) | {"out": out}
    where = f"{sweep.stage} with {shown(point)}" if point else f"base of {sweep.stage}"
    return configs.build(config_class(sweep), data, where)


def base_config(sweep: SweepConfig) -> Config:
    """The stage's config without a point: what `base` says."""
    return trial_config(sweep, {}, f"{sweep.out}/base")


def check(sweep: SweepConfig, points: Sequence[Point]) -> tuple[Objective, ...]:
    """Refuse what no trial could run, before any does; returns the objectives.

    Args:
        sweep: the config.
        points: that will be tried, or some of the space where they are not known yet.

    Raises:
        UserError: a key of the space is not one of the stage's config, or does not change what it computes; a point is
            refused by it; or a metric is none that a trial reports.
    """
    known = config_class(sweep)
    if "out" in sweep.base:
        raise UserError("base.out: every trial has a directory of its own below the sweep's out; leave it out of base")
    if sweep.scheduler.kind != "none" and not getattr(known, "measured_on_the_way", True):
        raise UserError(
            f"scheduler.kind={sweep.scheduler.kind}: {sweep.stage} reports its measures at the end alone, so there is "
            "nothing to stop or change a trial by; use scheduler.kind=none"
        )
    for name in sweep.space:
        _check_key(known, name)
    spaces.check(sweep.space)
    trials = [cast(Sweepable, trial_config(sweep, point, f"{sweep.out}/trials/x")) for point in points]
    found = []
    for objective in sweep.objectives:
        for trial, point in zip(trials, points, strict=True):
            if objective.metric not in trial.measures():
                raise UserError(_unreported(sweep, objective.metric, trial.measures(), point))
        mode = objective.mode or trials[0].measures()[objective.metric]
        found.append(Objective(objective.metric, mode, objective.reference))
    return tuple(found)


def shown(point: Point) -> str:
    """A point in one line."""
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in point.items()
    )


def _unreported(sweep: SweepConfig, metric: str, measures: dict[str, Direction], point: Point) -> str:
    close = difflib.get_close_matches(metric, measures, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return (
        f"objectives: a {sweep.stage} trial ({shown(point)}) never reports {metric!r}{hint} It reports "
        f"{', '.join(measures)}; others may need held-out data in base, such as watch.chains or eval_chains of tasks"
    )


def _check_key(known: type[Config], name: str) -> None:
    """A key must be one of the config class, and one that decides what a run computes."""
    fields: Any = known
    parts = name.split(".")
    for depth, part in enumerate(parts):
        nested = isinstance(fields, type) and issubclass(fields, Config)
        if not nested or part not in fields.model_fields:
            keys = sorted({key.split("[")[0] for key, *_ in configs.describe(known)})
            close = difflib.get_close_matches(name, keys, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(keys)}"
            raise UserError(f"space.{name}: {'.'.join(parts[: depth + 1])} is no key of the stage's config; {hint}")
        field = fields.model_fields[part]
        if configs.is_runtime(field):
            raise UserError(
                f"space.{name}: {part} says how or where a run runs and not what it computes, so trials would not "
                "differ; set it in base"
            )
        fields = configs.nested_class(field.annotation)
