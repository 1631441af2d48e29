"""The finetune stage: Ray Train runs the workers, DeepSpeed shards, raylm's loop trains; a model directory results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from raylm.errors import UserError
from raylm.llm import models
from raylm.storage import Manifest, StageRun, Store
from raylm.train import loggers, repair
from raylm.train.config import FinetuneConfig
from raylm.train.data import file_digest, read_all
from raylm.train.work import Work


def run(config: FinetuneConfig) -> Manifest:
    """Fine-tune; a second call with the same config and chains returns at once, an interrupted run goes on.

    Raises:
        UserError: bad chains, a model that cannot be had, or an out directory of another run.
    """
    from raylm import report

    rows, digest = read_all(config)
    directory = models.resolve(config.model, config.revision, config.trust_remote_code)
    inputs = {"chains": digest, "model": directory.ref.revision}
    if config.plan:
        inputs["plan"] = repair.load(config.plan)[1]
    if config.isolation.mask_file:
        inputs["mask"] = file_digest(config.isolation.mask_file)
    stage = StageRun("finetune", config, config.out, inputs)
    if stage.finished is None:
        tokenizer = models.load_tokenizer(directory.path, config.trust_remote_code)
        work = Work.of(config, rows, tokenizer)
        check_isolation(config, directory.path, work.plan.steps)
        loggers.check(config)
        seconds = _train(config, stage, str(directory.path), work.plan.steps)
        _finish(stage, directory, work, seconds)
    report.for_stage("finetune", stage.store)
    assert stage.finished is not None
    return stage.finished


def check_isolation(config: FinetuneConfig, model: Path, steps: int) -> None:
    """Refuse isolation that does not fit the model or the run, before anything is started.

    Raises:
        UserError: the run is too short for its masks, a pattern fits no tensor, or the mask file is of another model.
    """
    if not config.isolation.enabled:
        return
    from raylm.train.isolation.parts import chosen, whole
    from raylm.train.isolation.schedule import Schedule
    from raylm.train.isolation.state import check_mask
    from raylm.train.model import skeleton

    Schedule(config.isolation, steps)
    segments = [segment for _, held in whole(skeleton(model, config)) for segment in held]
    shapes = chosen(segments, config.isolation.include, config.isolation.exclude)
    if config.isolation.source == "file":
        check_mask(config.isolation.mask_file, shapes)


def _train(config: FinetuneConfig, stage: StageRun, model_path: str, steps: int) -> float:
    """Run the Ray Train job with a progress bar; returns its seconds.

    Raises:
        UserError: loss or gradient was not finite; the message names the batch.
    """
    from raylm.train import job
    from raylm.train.worker import STOPPED, train_loop

    # Ray Train's workers have working directories of their own.
    mask = config.isolation.mask_file
    isolation = config.isolation.model_dump(mode="json") | {"mask_file": mask and os.path.abspath(mask)}
    absolute = {
        "isolation": isolation,
        "chains": Store(config.chains).place,
        "plan": config.plan if "://" in config.plan else config.plan and os.path.abspath(config.plan),
        "step_log": config.step_log and os.path.abspath(config.step_log),
    }
    arguments = {"config": config.model_dump(mode="json") | absolute, "model": model_path, "root": stage.store.place}
    seconds = job.fit(train_loop, arguments, config, title="finetune", steps=steps)
    if stage.store.exists(STOPPED):
        why = stage.store.read_json(STOPPED)["why"]
        stage.store.remove(STOPPED)
        raise UserError(f"{why}; lower lr or clip, train in float32, or look at these chains")
    return seconds


def _finish(stage: StageRun, directory: models.ModelDir, work: Work, seconds: float) -> None:
    store = stage.store
    log = store.read_json("log.json")
    store.write_table("data/steps.parquet", pa.Table.from_pylist(log["steps"]))
    if log["masks"]:
        store.write_table("data/isolation.parquet", _mask_table(log["masks"]))
    columns = ("step", "id", "loss", "token_accuracy")
    rows = [dict(zip(columns, row, strict=True)) for row in log["seen"]]
    store.write_table("data/samples.parquet", pa.Table.from_pylist(rows))
    if log["watch"]:
        store.write_table("data/watch.parquet", pa.Table.from_pylist(log["watch"]))
    tokens = sum(row["total_tokens"] for row in log["steps"])
    store.remove("train")
    stage.finish(
        len(log["steps"]),
        timing={"seconds": seconds, "tokens_per_second": log["tokens_per_second"], "step_seconds": log["step_seconds"]},
        model={"name": directory.ref.name, "revision": directory.ref.revision},
        tokens={"trained": tokens, "labels": sum(row["label_tokens"] for row in log["steps"])},
        figures={
            "first_loss": log["steps"][0]["loss"],
            "last_loss": log["steps"][-1]["loss"],
            "overlong_chains": work.overlong,
            "repair": work.counts(),
            "exported_step": log["exported_step"],
            "measures": log["measures"],
            "trainable_parameters": log["trainable_parameters"],
            "padding_share": log["padding_share"],
            "export_largest_logit_difference": log["export_largest_logit_difference"],
        },
        folders=("data", "model", "isolation"),
    )
    store.remove("log.json")


def _mask_table(rows: list[dict[str, Any]]) -> pa.Table:
    """A row a refresh; the densities of the tensors as JSON."""
    plain = [{**row, "layers_json": json.dumps(row["layers"])} for row in rows]
    table = pa.Table.from_pylist([{key: row[key] for key in row if key != "layers"} for row in plain])
    for name in ("jaccard_previous", "jaccard_first"):  # None at the first mask, and there may be no second
        at = table.column_names.index(name)
        table = table.set_column(at, name, table.column(name).cast(pa.float64()))
    return table
