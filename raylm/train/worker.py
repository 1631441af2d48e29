"""What every Ray Train worker of a fine-tuning runs."""

from __future__ import annotations

from typing import Any

import torch

from raylm.storage import Store
from raylm.train.config import FinetuneConfig
from raylm.train.rank import Rank
from raylm.train.run import Run

STOPPED = "stopped.json"
"""Why a run ended early, where starting it again would not help."""


def train_loop(args: dict[str, Any]) -> None:
    """Train from the newest complete checkpoint to the end, then export on rank 0.

    Args:
        args: `config` (plain data), `model` (directory), `root` (the stage's directory), `sink` (actor for progress).
    """
    import ray.train

    config = FinetuneConfig.model_validate(args["config"])
    rank = Rank(args, config)
    torch.manual_seed(config.seed)
    run = Run(config, args["model"], rank.root, rank.place, rank.saved())
    try:
        run.train(rank.tell, rank.keep)
    except FloatingPointError as error:
        # All ranks see the same norm and end here. Raised, it would be tried again, to the same end.
        if rank.number == 0:
            Store(args["root"]).write_json(STOPPED, {"why": str(error)})
        return
    log = run.finish()
    if rank.number == 0:
        Store(args["root"]).write_json("log.json", log)
    ray.train.report({"step": len(run.rows)})
