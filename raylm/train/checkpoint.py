"""Training checkpoints: complete or ignored, newest first, and exact.

Every rank writes its state and, last, a small file that says how large the state is and how many ranks there are. A
checkpoint counts only when all of them have the size they say, so one that a kill or a full disk cut short is passed
over for the one before. States name their tensors, so that any number of ranks can go on from them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from raylm.errors import UserError


@contextmanager
def room(place: Path, step: int) -> Iterator[None]:
    """Where a checkpoint is written to `place`.

    Raises:
        UserError: the disk is full; the checkpoint before this one is whole.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"{place}: no space left for the checkpoint of step {step}; free some and run the same command again: it "
            "goes on from the checkpoint before. TMPDIR says where checkpoints are prepared"
        ) from error


def save(folder: Path, rank: int, world: int, state: dict[str, Any]) -> None:
    """Write the state of one of `world` ranks into a checkpoint's folder.

    Raises:
        UserError: the disk is full; the checkpoint before this one is whole.
    """
    file = folder / f"rank-{rank}.pt"
    with room(file, state["step"]), file.open("wb") as sink:
        torch.save(state, sink)
    said = {"bytes": file.stat().st_size, "step": state["step"], "world": world}
    (folder / f"rank-{rank}.json").write_text(json.dumps(said))


def load(folder: Path) -> list[dict[str, Any]]:
    """The states of all ranks; tensors and plain values only, so that loading runs no code.

    Tensors stay on the disk until they are read: a rank needs few of the others'.
    """
    world = json.loads((folder / "rank-0.json").read_text())["world"]
    return [
        torch.load(folder / f"rank-{rank}.pt", map_location="cpu", weights_only=True, mmap=True)
        for rank in range(world)
    ]


def step_of(folder: Path) -> int:
    """Optimizer steps that a complete checkpoint holds, -1 when it is not complete."""
    steps, rank, world = set(), 0, 1
    while rank < world:
        file = folder / f"rank-{rank}.pt"
        try:
            said = json.loads((folder / f"rank-{rank}.json").read_text())
            size = os.path.getsize(file)
        except (OSError, json.JSONDecodeError):
            return -1
        if size != said["bytes"]:
            return -1
        world = said["world"]
        steps.add(said["step"])
        rank += 1
    return steps.pop() if len(steps) == 1 else -1


def newest(root: Path) -> Path | None:
    """The complete checkpoint with the most steps anywhere directly under `root`.

    Ray Train hands a restarted worker the last checkpoint that its controller had registered, which may be one before
    the last that was stored; looking at what is stored keeps the loss to one interval.
    """
    found = [(step_of(folder), folder) for folder in root.glob("checkpoint_*") if folder.is_dir()]
    best = max(found, default=(-1, root))
    return best[1] if best[0] >= 0 else None


def clear(root: Path) -> None:
    """Delete what is directly under `root` and is no complete checkpoint: copies that a kill or a full disk cut short.

    For one rank before training, when nothing is written.
    """
    for folder in root.glob("checkpoint_*"):
        if folder.is_dir() and step_of(folder) < 0:
            shutil.rmtree(folder, ignore_errors=True)
