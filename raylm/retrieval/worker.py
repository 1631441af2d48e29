"""What every Ray Train worker of a retriever runs."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from raylm.retrieval.config import RetrieverConfig
from raylm.retrieval.prepare import opened
from raylm.retrieval.run import Run
from raylm.storage import Store
from raylm.train import checkpoint
from raylm.train.worker import saved

MINED, WORK = "negatives.parquet", "work"
"""The mined negatives, and the folder of corpus and BM25 index while a run is not finished."""


def train_loop(args: dict[str, Any]) -> None:
    """Train from the newest complete checkpoint to the end, then evaluate and save.

    Args:
        args: `config` (plain data), `root` (the stage's directory), `sink` (actor for progress).
    """
    import ray.train

    config, context = RetrieverConfig.model_validate(args["config"]), ray.train.get_context()
    rank, world, root = context.get_world_rank(), context.get_world_size(), Path(args["root"])
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    store = Store(args["root"])
    data, mined = opened(config, root / WORK), store.read_table(f"{WORK}/{MINED}")
    run = Run(config, data, mined, (rank, world), saved(root / "train"))
    start = time.monotonic()

    def on_step(row: dict[str, Any]) -> None:
        if rank > 0:
            return
        if config.step_log:
            with open(config.step_log, "a") as file:
                file.write(json.dumps({"step": row["step"], "pid": os.getpid()}) + "\n")
        done = (row["step"] - run.first) * config.batch_size
        args["sink"].add.remote({**row, "pairs_per_second": done / (time.monotonic() - start)})

    def keep(step: int, state: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory(prefix="raylm-checkpoint-", dir=os.environ.get("TMPDIR")) as folder:
            checkpoint.save(Path(folder), rank, world, state)
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    run.train(on_step, keep)
    log = run.finish(root / "model" if rank == 0 else None)
    if rank == 0:
        store.write_json("log.json", log)
    ray.train.report({"step": run.steps})
