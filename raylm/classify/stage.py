"""The train-classifier stage: Ray Train runs the workers; a directory with model, figures and predictions results."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa

from raylm.classify.config import ClassifierConfig
from raylm.classify.data import Data, load, teacher_place
from raylm.llm import models
from raylm.storage import Manifest, StageRun


def run(config: ClassifierConfig) -> Manifest:
    """Train a classifier; a second call with the same config and texts returns at once, an interrupted run goes on.

    Raises:
        UserError: bad texts, an encoder that cannot be had, or an out directory of another run.
    """
    from raylm import report
    from raylm.train import job

    data = load(config)
    encoder = models.resolve_encoder(config.model, config.revision)
    inputs = {"texts": data.digest, "model": encoder.ref.revision}
    teacher = teacher_place(config.soft.teacher) if config.soft.teacher else None
    if teacher is not None:
        inputs["teacher"] = models.resolve_encoder(str(teacher)).ref.revision
    stage = StageRun("classify", config, config.out, inputs)
    if stage.finished is None:
        from raylm.classify.worker import train_loop

        # Ray Train's workers have working directories of their own.
        paths = {name: getattr(config, name) for name in ("train", "dev", "test", "step_log")}
        absolute = {name: path if "://" in path else os.path.abspath(path) for name, path in paths.items() if path}
        said: dict[str, Any] = config.model_dump(mode="json") | absolute
        if teacher is not None:
            said["soft"]["teacher"] = os.path.abspath(teacher)
        arguments = {
            "config": said,
            "model": str(encoder.path),
            "root": stage.store.place,
        }
        steps = config.epochs * -(-len(data.train) // config.batch_size)
        seconds = job.fit(train_loop, arguments, config, title="train-classifier", steps=steps)
        _finish(stage, data, {"name": encoder.ref.name, "revision": encoder.ref.revision}, seconds)
    report.for_stage("classify", stage.store)
    assert stage.finished is not None
    return stage.finished


def _finish(stage: StageRun, data: Data, model: dict[str, str], seconds: float) -> None:
    store = stage.store
    log: dict[str, Any] = store.read_json("log.json")
    for name in ("steps", "looks", "predictions", "reliability"):
        store.write_table(f"data/{name}.parquet", pa.Table.from_pylist(log[name]))
    store.remove("train")
    kept = ("measures", "texts", "overlong", "overlaps", "temperature", "trainable_parameters")
    stage.finish(
        len(log["predictions"]),
        timing={"seconds": seconds},
        model=model,
        figures={**log["figures"], **{name: log[name] for name in kept}, "labels": list(data.labels)},
        folders=("data", "model"),
    )
    store.remove("log.json")
