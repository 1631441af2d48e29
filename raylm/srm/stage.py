"""The train-reward stage: Ray Train runs the workers; a directory with model, figures and scored pairs results."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa

from raylm.errors import UserError
from raylm.llm import models
from raylm.llm.models import ModelDir
from raylm.srm.config import RewardConfig
from raylm.srm.data import Data, load
from raylm.storage import Manifest, StageRun

FILES = ("pairs", "ratings", "dev_pairs", "dev_ratings", "test_pairs", "test_ratings")


def run(config: RewardConfig) -> Manifest:
    """Train a reward model; a second call with the same config and data returns at once, an interrupted run goes on.

    Raises:
        UserError: bad pairs or ratings, a backbone that cannot be had, or an out directory of another run.
    """
    from raylm import report
    from raylm.train import job

    data = load(config)
    model = _model(config)
    inputs = {"data": data.digest, "model": model.ref.revision}
    stage = StageRun("reward", config, config.out, inputs)
    if stage.finished is None:
        from raylm.srm.worker import train_loop

        # Ray Train's workers have working directories of their own.
        paths = {name: getattr(config, name) for name in (*FILES, "base", "step_log")}
        absolute = {name: path if "://" in path else os.path.abspath(path) for name, path in paths.items() if path}
        arguments = {
            "config": config.model_dump(mode="json") | absolute,
            "model": str(model.path),
            "root": stage.store.place,
        }
        seconds = job.fit(train_loop, arguments, config, title="train-reward", steps=_steps(config, data))
        _finish(stage, {"name": model.ref.name, "revision": model.ref.revision}, seconds)
    report.for_stage("reward", stage.store)
    assert stage.finished is not None
    return stage.finished


def _model(config: RewardConfig) -> ModelDir:
    """The backbone, or the reward model of which branches are trained anew."""
    if config.base:
        from raylm.srm.model import is_reward_model

        if not is_reward_model(config.base):
            raise UserError(f"base={config.base}: no reward model here; give the `model` folder of a train-reward run")
        return models.resolve_encoder(config.base)
    if config.model.lower() in ("micro", *models.PACKAGED):
        return models.resolve(config.model, config.revision)
    return models.resolve_encoder(config.model, config.revision)


def _steps(config: RewardConfig, data: Data) -> int:
    from raylm.srm import phases
    from raylm.srm.data import fold_of

    folds = fold_of(data.groups, config.folds, config.seed)
    return phases.plan(config, data.train, folds, any(spec.trained for spec in config.branches))[-1].end


def _finish(stage: StageRun, model: dict[str, str], seconds: float) -> None:
    store = stage.store
    log: dict[str, Any] = store.read_json("log.json")
    for name in ("steps", "looks", "pairs", "calibration"):
        if log[name]:
            store.write_table(f"data/{name}.parquet", pa.Table.from_pylist(log[name]))
    store.write_json("data/bad_cases.json", log["bad_cases"])
    store.remove("train")
    kept = ("measures", "counts", "cut", "gate", "overlaps", "contradictions")
    stage.finish(
        len(log["pairs"]),
        timing={"seconds": seconds},
        model=model,
        figures={**log["figures"], **{name: log[name] for name in kept}},
        folders=("data", "model"),
    )
    store.remove("log.json")
