"""What every Ray Train worker of a retriever runs."""

from __future__ import annotations

from typing import Any

from raylm.retrieval.config import RetrieverConfig
from raylm.retrieval.prepare import opened
from raylm.retrieval.run import Run
from raylm.storage import Store
from raylm.train.rank import Rank

MINED, WORK = "negatives.parquet", "work"
"""The mined negatives, and the folder of corpus and BM25 index while a run is not finished."""


def train_loop(args: dict[str, Any]) -> None:
    """Train from the newest complete checkpoint to the end, then evaluate and save.

    Args:
        args: `config` (plain data), `root` (the stage's directory), `sink` (actor for progress).
    """
    import ray.train

    config, store = RetrieverConfig.model_validate(args["config"]), Store(args["root"])
    rank = Rank(args, config)
    data, mined = opened(config, rank.root / WORK), store.read_table(f"{WORK}/{MINED}")
    run = Run(config, data, mined, rank.place, rank.saved())
    run.train(rank.teller("pairs", run.first, config.batch_size), rank.keep)
    log = run.finish(rank.root / "model" if rank.number == 0 else None)
    if rank.number == 0:
        store.write_json("log.json", log)
    ray.train.report({"step": run.steps})
