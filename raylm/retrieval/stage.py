"""The train-retriever stage: negatives mined by Ray Data, training by Ray Train; a sentence-transformers directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from raylm.llm import models
from raylm.retrieval.config import RetrieverConfig
from raylm.retrieval.data import Census
from raylm.retrieval.measures import means
from raylm.retrieval.prepare import Data, check, summary
from raylm.storage import Manifest, StageRun


def run(config: RetrieverConfig) -> Manifest:
    """Train a retriever; a second call with the same config and data returns at once, an interrupted run goes on.

    Raises:
        UserError: a bad collection, an encoder or teacher that cannot be had, or an out directory of another run.
    """
    from raylm import report
    from raylm.retrieval.encoder import Encoder
    from raylm.retrieval.layers import upper
    from raylm.retrieval.mine import mine, prepare
    from raylm.train import job

    collection, census, digest = check(config)
    found = models.resolve_encoder(config.model, config.revision)
    inputs = {"collection": digest, "model": found.ref.revision}
    if config.negatives.teacher:
        inputs["teacher"] = models.resolve_encoder(config.negatives.teacher).ref.revision
    changes = {name: getattr(config, name) for name in ("pooling", "dimension", "max_length")}
    encoder = Encoder.load(str(found.path), **changes)  # refuses settings that do not fit before out is claimed
    if config.freeze_layers:
        upper(encoder.model, config.freeze_layers, 0.0)
    stage = StageRun("retrieve", config, config.out, inputs)
    if stage.finished is None:
        from raylm.retrieval.worker import MINED, WORK, train_loop

        config = config.model_copy(update=_absolute(config) | {"model": str(found.path)})
        folder = Path(stage.store.place) / WORK
        data = prepare(config, collection, encoder.tokenizer, folder)
        mined = mine(config, data, stage.store, folder)
        stage.store.write_table(f"{WORK}/{MINED}", mined)
        arguments = {"config": config.model_dump(mode="json"), "root": stage.store.place}
        steps = config.epochs * -(-len(data.pairs) // config.batch_size)
        seconds = job.fit(train_loop, arguments, config, title="train-retriever", steps=steps)
        _finish(stage, data, census, {"name": found.ref.name, "revision": found.ref.revision}, seconds=seconds)
    report.for_stage("retrieve", stage.store)
    assert stage.finished is not None
    return stage.finished


def _absolute(config: RetrieverConfig) -> dict[str, Any]:
    """Paths for Ray's workers, which have working directories of their own."""
    paths = {name: getattr(config, name) for name in ("data", "step_log")}
    found: dict[str, Any] = {
        name: path if "://" in path else os.path.abspath(path) for name, path in paths.items() if path
    }
    teacher = config.negatives.teacher
    if os.path.isdir(teacher):
        found["negatives"] = config.negatives.model_copy(update={"teacher": os.path.abspath(teacher)})
    return found


def _model_files(root: Path) -> list[str]:
    return sorted(str(file.relative_to(root)) for file in (root / "model").rglob("*") if file.is_file())


def _finish(stage: StageRun, data: Data, census: Census, model: dict[str, str], *, seconds: float) -> None:
    store = stage.store
    log: dict[str, Any] = store.read_json("log.json")
    mined = store.read_table("work/negatives.parquet")
    store.write_table("data/negatives.parquet", mined)
    for name in filter(log.get, ("steps", "looks", "refreshes")):
        store.write_table(f"data/{name}.parquet", pa.Table.from_pylist(log[name]))
    rows = [
        {"query": query, **{f"{name} before": value for name, value in log["before"][query].items()}, **after}
        for query, after in sorted(log["after"].items())
    ]
    store.write_table("data/queries.parquet", pa.Table.from_pylist(rows))
    reasons: dict[str, int] = {}
    for source, reason in zip(mined["source"].to_pylist(), mined["reason"].to_pylist(), strict=True):
        reasons[f"{source}: {reason or 'kept'}"] = reasons.get(f"{source}: {reason or 'kept'}", 0) + 1
    store.remove("train")
    store.remove("work")
    kept = ("measures", "hash", "soft", "trainable_parameters")
    stage.finish(
        len(rows),
        timing={"seconds": seconds},
        model=model,
        figures={
            "before": means(log["before"]), "after": means(log["after"]), **{name: log[name] for name in kept},
            "collection": summary(census, data, log["overlong"]), "negatives": reasons,
        },
        files=_model_files(Path(store.place)),
    )  # fmt: skip
    store.remove("log.json")
