"""What every Ray Train worker of a classifier runs."""

from __future__ import annotations

from typing import Any

from raylm.classify.config import ClassifierConfig
from raylm.classify.run import Run
from raylm.storage import Store
from raylm.train.rank import Rank


def train_loop(args: dict[str, Any]) -> None:
    """Train from the newest complete checkpoint to the end, then evaluate and save on rank 0.

    Args:
        args: `config` (plain data), `model` (directory), `root` (the stage's directory), `sink` (actor for progress).
    """
    import ray.train

    config = ClassifierConfig.model_validate(args["config"])
    rank = Rank(args, config)
    run = Run(config, args["model"], rank.place, rank.saved())
    run.train(rank.teller("texts", run.first, config.batch_size), rank.keep)
    log = run.finish(rank.root / "model" if rank.number == 0 else None)
    if rank.number == 0:
        Store(args["root"]).write_json("log.json", log)
    ray.train.report({"step": run.steps})
