"""What every Ray Train worker of a reward model runs."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from raylm.srm.config import RewardConfig
from raylm.srm.run import Run
from raylm.storage import Store
from raylm.train import checkpoint
from raylm.train.worker import saved


def train_loop(args: dict[str, Any]) -> None:
    """Train from the newest complete checkpoint to the end, then evaluate and save on rank 0.

    Args:
        args: `config` (plain data), `model` (directory), `root` (the stage's directory), `sink` (actor for progress).
    """
    import ray.train

    config, context = RewardConfig.model_validate(args["config"]), ray.train.get_context()
    rank, world, root = context.get_world_rank(), context.get_world_size(), Path(args["root"])
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    run = Run(config, args["model"], (rank, world), saved(root / "train"), folder=root / "train" / "features")
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
    if rank == 0:
        Store(args["root"]).write_json("log.json", run.finish(root / "model"))
    ray.train.report({"step": run.steps})
