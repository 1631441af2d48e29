"""What every Ray Train worker of a reward model runs."""

from __future__ import annotations

from typing import Any

from raylm.srm.config import RewardConfig
from raylm.srm.run import Run
from raylm.storage import Store
from raylm.train.rank import Rank


def train_loop(args: dict[str, Any]) -> None:
    """Train from the newest complete checkpoint to the end, then evaluate and save on rank 0.

    Args:
        args: `config` (plain data), `model` (directory), `root` (the stage's directory), `sink` (actor for progress).
    """
    import ray.train

    config = RewardConfig.model_validate(args["config"])
    rank = Rank(args, config)
    folder = rank.root / "train" / "features"
    run = Run(config, args["model"], rank.place, rank.saved(), folder=folder, tell=rank.count)
    run.train(rank.teller("pairs", run.first, config.batch_size), rank.keep)
    if rank.number == 0:
        Store(args["root"]).write_json("log.json", run.finish(rank.root / "model"))
    ray.train.report({"step": run.steps})
