"""Configs of the sweep stage."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from raylm.config import Config, Direction, runtime

KINDS = ("choice", "grid", "uniform", "loguniform", "quniform", "integer")


class ParameterConfig(Config):
    """Values of one key of the stage's config. Exactly one of the kinds is given."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    """Any of these values, all as likely."""
    grid: tuple[Any, ...] | None = Field(None, min_length=1)
    """Every one of these values, with every other parameter's: for search.kind=grid."""
    uniform: tuple[float, float] | None = None
    """[low, high]."""
    loguniform: tuple[float, float] | None = None
    """[low, high], uniform on the logarithm."""
    quniform: tuple[float, float, float] | None = None
    """[low, high, step]: low, low + step, and so on to high."""
    integer: tuple[int, int] | None = None
    """[low, high], both possible."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Other keys and the value, or values, that they must have for this parameter to be there; without, the key keeps
    what `base` says."""

    @property
    def kind(self) -> str:
        """Which of the kinds is given."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_kind(self) -> ParameterConfig:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}, not {' and '.join(given) or 'none'}")
        values = getattr(self, given[0])
        if given[0] in ("choice", "grid"):
            if len({repr(value) for value in values}) < len(values):
                raise ValueError(f"{given[0]} has a value twice")
            return self
        low, high = values[:2]
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"{given[0]}: low {low} must be below high {high}")
        if given[0] == "loguniform" and low <= 0:
            raise ValueError(f"loguniform: low {low} must be above 0")
        if given[0] == "quniform" and not 0 < values[2] <= high - low:
            raise ValueError(f"quniform: step {values[2]} must be above 0 and at most high - low")
        return self


class ObjectiveConfig(Config):
    """A number that trials are compared by."""

    metric: str
    """One of the stage's measures."""
    mode: Direction | None = None
    """Which values are better; None as the stage says."""
    reference: float | None = None
    """Value at which the hypervolume begins; None takes the worst among the finished trials."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"metric": value} if isinstance(value, str) else value


class SearchConfig(Config):
    """How points of the space are chosen."""

    kind: Literal["random", "grid", "optuna"] = "random"
    """random: independent draws. grid: every point of a space of `grid` and `choice` alone. optuna: tree-structured
    Parzen estimators, with several objectives too."""
    trials: int = Field(16, ge=1)
    """Points that are tried; a grid has as many as it has."""
    startup: int = Field(8, ge=1)
    """Of optuna: random trials before its model decides."""


class SchedulerConfig(Config):
    """What is done with trials while they run, by the first objective. Times are percent of a trial's steps."""

    kind: Literal["none", "asha", "pbt"] = "none"
    """none: all run to the end. asha: the worst are stopped early. pbt: all run as a population, in which the worst go
    on from checkpoints of the best with their parameters changed a little."""
    grace: float = Field(20.0, gt=0, lt=100)
    """Of asha: before this no trial is stopped."""
    reduction: float = Field(3.0, gt=1)
    """Of asha: one in so many goes on at each rung."""
    interval: float = Field(20.0, gt=0, lt=100)
    """Of pbt: time between two exchanges."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """Of pbt: share of the population that is replaced, and that it is replaced from."""
    resample: float = Field(0.25, ge=0, le=1)
    """Of pbt: chance that a changed parameter is drawn anew instead of moved a little."""


class SweepConfig(Config):
    """Search a stage's settings: every trial is the stage's own run."""

    stage: str
    """Verb that a trial runs: finetune, train-classifier, ..."""
    base: dict[str, Any] = runtime({})
    """Config of the stage, as for the verb itself, which the parameters change. `out` is the sweep's to choose."""
    space: dict[str, ParameterConfig] = Field(min_length=1)
    """Dotted keys of the stage's config and their values."""
    objectives: tuple[ObjectiveConfig, ...] = Field(min_length=1)
    """What is better. With several the result is a Pareto front."""
    search: SearchConfig = SearchConfig()
    """Which points are tried."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """Which trials are stopped or changed."""
    out: str = runtime("runs/sweep")
    """Directory of the artefact; the trials' artefacts lie in `trials` below it."""
    seed: int = 0
    """Of the points. The stage's own seed is in `base`."""
    minutes: float = runtime(0.0, ge=0)
    """After so many minutes the sweep ends with the trials that have finished; 0 waits for all. A sweep that goes on
    has as many again."""
    max_concurrent: int = runtime(0, ge=0)
    """Trials at once; 0 takes as many as the nodes have room for with all their workers."""
    driver_cpus: float = runtime(0.0, ge=0)
    """CPU cores that are set aside for the driver of a trial, which mostly waits."""
    max_failures: int = runtime(1, ge=0)
    """How often a trial whose driver dies is started again; it goes on from its checkpoint."""
    max_failed_share: float = runtime(0.2, ge=0, le=1)
    """Share of failed trials above which the sweep is refused."""
    keep: Literal["all", "front"] = runtime("all")
    """Trials whose directories stay once the sweep is done; figures of all are kept in any case."""

    @model_validator(mode="after")
    def _fits(self) -> SweepConfig:
        kinds = {name: parameter.kind for name, parameter in self.space.items()}
        if self.search.kind == "grid":
            endless = [name for name, kind in kinds.items() if kind not in ("grid", "choice")]
            if endless:
                raise ValueError(
                    f"search.kind=grid: {endless[0]} is {kinds[endless[0]]}, which has no end; list values"
                )
            if self.scheduler.kind != "none":
                raise ValueError(
                    f"search.kind=grid tries every point to the end, and scheduler.kind={self.scheduler.kind} would "
                    "not; use search.kind=random, or no scheduler"
                )
        elif "grid" in kinds.values():
            name = next(name for name, kind in kinds.items() if kind == "grid")
            raise ValueError(f"space.{name} is a grid, and search.kind={self.search.kind} draws points; use choice")
        if self.scheduler.kind == "pbt" and self.search.kind != "random":
            raise ValueError("scheduler.kind=pbt chooses points itself after the first ones; use search.kind=random")
        if self.scheduler.kind == "pbt" and self.search.trials < 4:
            raise ValueError(f"scheduler.kind=pbt: a population of {self.search.trials} is too small; at least 4")
        metrics = [objective.metric for objective in self.objectives]
        if len(set(metrics)) < len(metrics):
            raise ValueError("objectives: a metric is there twice")
        return self
