"""Sums and lists over all ranks, which are the identity where there is one process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def world() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, in place; a CPU tensor, which NCCL cannot reduce, goes by way of the GPU there."""
    if world() == 1:
        return values
    if dist.get_backend() == "nccl" and values.device.type == "cpu":
        moved = values.cuda()
        dist.all_reduce(moved)
        return values.copy_(moved)
    dist.all_reduce(values)
    return values


def everyones(value: Any) -> list[Any]:
    """`value` of every rank, in the order of ranks."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found
