"""Vectors of all workers in one batch, so that every query sees the documents of all of them."""

from __future__ import annotations

import torch
import torch.distributed


def gathered(own: torch.Tensor, total: int, rank: int, world: int) -> torch.Tensor:
    """The rows of all ranks, [total, ...], in the order in which they were dealt out; all ranks together.

    Row n is rank n modulo `world`'s. Gradients flow into the own rows alone: every rank computes the whole loss, so its
    gradient with respect to its own rows is already that of one worker with the whole batch, and sums over ranks (not
    means) give that of the weights.

    Args:
        own: [rows of this rank, ...].
        total: rows of all ranks.
    """
    if world == 1:
        return own
    most = -(-total // world)
    sent = own.new_zeros((most, *own.shape[1:]))
    sent[: len(own)] = own.detach()
    parts = [torch.empty_like(sent) for _ in range(world)]
    torch.distributed.all_gather(parts, sent)
    found = own.new_zeros((total, *own.shape[1:]))
    for other, part in enumerate(parts):
        rows = len(range(other, total, world))
        found[other::world] = own if other == rank else part[:rows]
    return found
