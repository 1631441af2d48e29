"""What every Ray Train worker runs: a run whose checkpoints and progress go to Ray."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from raylm.storage import Store
from raylm.train import checkpoint
from raylm.train.config import FinetuneConfig
from raylm.train.run import Run

STOPPED = "stopped.json"
"""Why a run ended early, where starting it again would not help."""


def train_loop(args: dict[str, Any]) -> None:
    """Train from the newest complete checkpoint to the end, then export on rank 0.

    Args:
        args: `config` (plain data), `model` (directory), `root` (the stage's directory), `sink` (actor for progress).
    """
    import ray.train

    config, context = FinetuneConfig.model_validate(args["config"]), ray.train.get_context()
    rank, world, root = context.get_world_rank(), context.get_world_size(), Path(args["root"])
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    torch.manual_seed(config.seed)

    def on_step(row: dict[str, Any]) -> None:
        if rank > 0:
            return
        if config.step_log:
            with open(config.step_log, "a") as file:
                file.write(json.dumps({"step": row["step"], "pid": os.getpid()}) + "\n")
        args["sink"].add.remote(row)

    def save(step: int, state: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory(prefix="raylm-checkpoint-", dir=os.environ.get("TMPDIR")) as folder:
            checkpoint.save(Path(folder), rank, world, state)
            with checkpoint.room(root / "train", step):
                ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    run = Run(config, args["model"], root, (rank, world), saved(root / "train"))
    try:
        run.train(on_step, save)
    except FloatingPointError as error:
        # All ranks see the same norm and end here. Raised, it would be tried again, to the same end.
        if rank == 0:
            Store(args["root"]).write_json(STOPPED, {"why": str(error)})
        return
    log = run.finish()
    if rank == 0:
        Store(args["root"]).write_json("log.json", log)
    ray.train.report({"step": len(run.rows)})


def saved(root: Path) -> Path | None:
    """The newest complete checkpoint below Ray Train's directory, or the one that it hands over."""
    import ray.train

    newest = checkpoint.newest(root) if root.is_dir() else None
    if newest is not None:
        return newest
    registered = ray.train.get_checkpoint()
    return Path(registered.to_directory()) if registered else None
