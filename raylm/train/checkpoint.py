"""Training checkpoints: complete or ignored, newest first, and exact.

Every rank writes its state and, last, a small file that says how large the state is. A checkpoint counts only when
all ranks' states have the size they say, so one that a kill cut short is passed over for the one before.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch


def save(folder: Path, rank: int, state: dict[str, Any]) -> None:
    """Write one rank's state into a checkpoint's folder."""
    file = folder / f"rank-{rank}.pt"
    torch.save(state, file)
    (folder / f"rank-{rank}.json").write_text(json.dumps({"bytes": file.stat().st_size, "step": state["step"]}))


def load(folder: Path, rank: int) -> dict[str, Any]:
    """One rank's state; tensors and plain values only, so that loading runs no code."""
    return torch.load(folder / f"rank-{rank}.pt", map_location="cpu", weights_only=True)


def step_of(folder: Path, world: int) -> int:
    """Optimizer steps that a complete checkpoint holds, -1 when it is not complete."""
    steps = set()
    for rank in range(world):
        try:
            said = json.loads((folder / f"rank-{rank}.json").read_text())
        except (OSError, json.JSONDecodeError):
            return -1
        file = folder / f"rank-{rank}.pt"
        if not file.is_file() or os.path.getsize(file) != said["bytes"]:
            return -1
        steps.add(said["step"])
    return steps.pop() if len(steps) == 1 else -1


def newest(root: Path, world: int) -> Path | None:
    """The complete checkpoint with the most steps anywhere directly under `root`.

    Ray Train hands a restarted worker the last checkpoint that its controller had registered, which may be one before
    the last that was stored; looking at what is stored keeps the loss to one interval.
    """
    found = [(step_of(folder, world), folder) for folder in root.glob("checkpoint_*") if folder.is_dir()]
    best = max(found, default=(-1, root))
    return best[1] if best[0] >= 0 else None
