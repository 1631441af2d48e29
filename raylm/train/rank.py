"""One rank of a Ray Train job: where it goes on from, and what it tells Ray. Every stage that trains runs on it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from raylm.train import checkpoint


class Settings(Protocol):
    """What a stage's config says of a rank."""

    @property
    def cpus_per_worker(self) -> float: ...
    @property
    def step_log(self) -> str: ...


class Rank:
    """This process's place in the job; construct it in the worker function."""

    def __init__(self, args: dict[str, Any], config: Settings) -> None:
        """Find the place, and keep torch to the threads that the config gives a worker.

        Args:
            args: `root` (the stage's directory), `sink` (actor for progress).
            config: of the stage.
        """
        import ray.train

        context = ray.train.get_context()
        self.number, self.world = context.get_world_rank(), context.get_world_size()
        self.root, self._train = Path(args["root"]), Path(args["root"]) / "train"
        self._sink, self._step_log = args["sink"], config.step_log
        torch.set_num_threads(max(1, int(config.cpus_per_worker)))

    @property
    def place(self) -> tuple[int, int]:
        """This rank, and how many there are."""
        return self.number, self.world

    def saved(self) -> Path | None:
        """The newest complete checkpoint below Ray Train's directory, or the one that it hands over."""
        import ray.train

        if self.number == 0:
            checkpoint.clear(self._train)
        newest = checkpoint.newest(self._train) if self._train.is_dir() else None
        if newest is not None:
            return newest
        registered = ray.train.get_checkpoint()
        return Path(registered.to_directory()) if registered else None

    def tell(self, row: dict[str, Any]) -> None:
        """Send the row of a step to the sink, and log the step where that is asked for; rank 0 alone does."""
        if self.number > 0:
            return
        if self._step_log:
            with open(self._step_log, "a") as file:
                file.write(json.dumps({"step": row["step"], "pid": os.getpid()}) + "\n")
        self._sink.add.remote(row)

    def count(self, unit: str, done: int, total: int) -> None:
        """Tell how far something beside the steps is, such as texts that are read before; rank 0 alone does."""
        if self.number == 0:
            self._sink.count.remote(unit, done, total)

    def teller(self, unit: str, first: int, batch: int) -> Callable[[dict[str, Any]], None]:
        """`tell` with a rate from now on: steps after `first`, each of `batch` units."""
        start = time.monotonic()

        def tell(row: dict[str, Any]) -> None:
            done = (row["step"] - first) * batch
            self.tell({**row, f"{unit}_per_second": done / (time.monotonic() - start)})

        return tell

    def keep(self, step: int, state: dict[str, Any]) -> None:
        """Make a checkpoint of this rank's state; all ranks together.

        Raises:
            UserError: the disk is full; the checkpoint before this one is whole.
        """
        import ray.train

        with tempfile.TemporaryDirectory(prefix="raylm-checkpoint-", dir=os.environ.get("TMPDIR")) as folder:
            checkpoint.save(Path(folder), self.number, self.world, state)
            with checkpoint.room(self._train, step):
                ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))
