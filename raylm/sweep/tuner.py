"""Ray Tune, set up for a sweep: which points, which scheduler, how many at once; started, or gone on with."""

from __future__ import annotations

import functools
import logging
import os
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from raylm.progress import Progress
from raylm.storage import MANIFEST, Store
from raylm.sweep import space as spaces
from raylm.sweep import trial
from raylm.sweep.config import SweepConfig
from raylm.sweep.space import Point
from raylm.sweep.stages import Objective
from raylm.sweep.trial import Job

NAME = "tune"
"""Folder of Tune's own state below the sweep's."""
_DRAWS = 50
"""Tries for a random point that was not drawn before."""


def points(sweep: SweepConfig) -> list[Point]:
    """All points of a grid or of random search, each once; fewer than asked for where the space has no more."""
    if sweep.search.kind == "grid":
        return spaces.grid(sweep.space)
    random = np.random.default_rng([sweep.seed, 11])
    found: dict[str, Point] = {}
    for _ in range(_DRAWS * sweep.search.trials):
        point = spaces.draw(sweep.space, random)
        found.setdefault(repr(point), point)
        if len(found) == sweep.search.trials:
            break
    return list(found.values())


def fit(sweep: SweepConfig, objectives: Sequence[Objective], tried: Sequence[Point], at_once: int, store: Store) -> Any:
    """Run all trials, those of an interrupted sweep that are not done included; returns Tune's ResultGrid."""
    from ray import tune

    from raylm.sweep.counting import Counter, shown_by

    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer one prints although it is to be silent
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")  # how much of the search a killed driver forgets
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    job = Job(sweep, store.place, os.getcwd(), tuple(objective.metric for objective in objectives), uuid.uuid4().hex)
    # Tune takes no trial that needs nothing; a megabyte of memory costs no worker its place.
    driver = {"CPU": sweep.driver_cpus} if sweep.driver_cpus else {"memory": 2**20}
    trainable = tune.with_resources(tune.with_parameters(trial.run, job=job), tune.PlacementGroupFactory([driver]))
    path = f"{store.place}/{NAME}"
    if tune.Tuner.can_restore(path):
        tuner = tune.Tuner.restore(path, trainable=trainable, resume_unfinished=True, restart_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space={"point": tune.grid_search(list(tried))} if sweep.search.kind != "optuna" else None,
            tune_config=tune.TuneConfig(
                search_alg=_search(sweep, objectives),
                scheduler=_scheduler(sweep, objectives[0]),
                num_samples=sweep.search.trials if sweep.search.kind == "optuna" else 1,
                max_concurrent_trials=at_once,
                reuse_actors=True,
                time_budget_s=60 * sweep.minutes or None,
            ),
            run_config=tune.RunConfig(
                name=NAME,
                storage_path=store.place,
                failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=4),  # of pbt, whose members read each other's
                callbacks=[Counter()],
                verbose=0,
            ),
        )
    folders = [name for name in store.names("trials") if store.exists(f"trials/{name}/{MANIFEST}")]
    before = frozenset(f"{store.place}/trials/{name}" for name in folders)
    with Progress("sweep", len(tried), "trials", done=len(before)) as progress, shown_by(progress, before):
        return tuner.fit()


def _search(sweep: SweepConfig, objectives: Sequence[Objective]) -> Any:
    """Tune's searcher; None for points that are known."""
    if sweep.search.kind != "optuna":
        return None
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    metrics, modes = [each.metric for each in objectives], [str(each.mode) for each in objectives]
    several = len(metrics) > 1
    return OptunaSearch(
        space=functools.partial(spaces.suggest, sweep.space),
        metric=metrics if several else metrics[0],
        mode=modes if several else modes[0],
        sampler=optuna.samplers.TPESampler(seed=sweep.seed, n_startup_trials=sweep.search.startup),
    )


def _scheduler(sweep: SweepConfig, objective: Objective) -> Any:
    from ray.tune import schedulers

    settings = sweep.scheduler
    shared = {"time_attr": "percent", "metric": objective.metric, "mode": objective.mode}
    if settings.kind == "asha":
        # A trial's last report is at 100: it ends by itself and not by the scheduler.
        return schedulers.AsyncHyperBandScheduler(
            **shared, grace_period=settings.grace, reduction_factor=settings.reduction, max_t=101
        )
    if settings.kind == "pbt":
        return schedulers.PopulationBasedTraining(
            **shared,
            perturbation_interval=settings.interval,
            quantile_fraction=settings.quantile,
            custom_explore_fn=functools.partial(_explored, sweep),
        )
    return None


def _explored(sweep: SweepConfig, params: dict[str, Any]) -> dict[str, Any]:
    """A member's next parameters from those it copies."""
    near = spaces.perturb(sweep.space, params["point"], np.random.default_rng(), sweep.scheduler.resample)
    return {**params, "point": near}
