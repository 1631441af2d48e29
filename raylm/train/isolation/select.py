"""The k-th largest score over all ranks, exactly and with three small sums, and masks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from raylm.train.isolation.collectives import everyones, total

Pieces = Callable[[], Iterable[tuple[int, torch.Tensor]]]
"""Makes (group, scores) anew at every call; scores are float32 and not negative."""
_DIGITS = ((20, 11), (10, 10), (0, 10))
"""(shift, width) of the digits of a float's bits, most significant first; the sign is 0."""


def largest(pieces: Pieces, wanted: Sequence[int]) -> tuple[list[float], list[float]]:
    """For every group, the `wanted`-th largest score of all ranks, and which share of those equal to it is wanted.

    The bits of a float that is not negative sort like the float, so that a search digit by digit needs three passes
    and three sums of 2,048 counters a group, whatever the number of scores (source: radix selection).

    Args:
        pieces: this rank's scores.
        wanted: by group, at least 1 and at most the number of its scores; 0 chooses nothing (an infinite threshold).
    """
    groups = len(wanted)
    left = torch.tensor(wanted, dtype=torch.int64)
    prefix = torch.zeros(groups, dtype=torch.int64)
    equal = torch.zeros(groups, dtype=torch.int64)
    for shift, width in _DIGITS:
        counts = torch.zeros(groups, 1 << width, dtype=torch.int64)
        for group, scores in pieces():
            bits = scores.contiguous().view(torch.int32)
            if shift != _DIGITS[0][0]:
                bits = bits[(bits >> (shift + width)) == int(prefix[group])]
            digits = (bits >> shift) & ((1 << width) - 1)
            counts[group] += torch.bincount(digits, minlength=1 << width).cpu()
        counts = total(counts)
        above = counts.flip(1).cumsum(1).flip(1) - counts  # larger than each digit
        for group in range(groups):
            digit = int(((above[group] < left[group]) & (counts[group] > 0)).nonzero()[0]) if wanted[group] else 0
            left[group] -= above[group, digit]
            equal[group] = counts[group, digit]
            prefix[group] = (prefix[group] << width) | digit
    values = prefix.to(torch.int32).view(torch.float32)
    thresholds = [float(value) if want else float("inf") for value, want in zip(values, wanted, strict=True)]
    return thresholds, [float(n) / max(1, int(e)) for n, e in zip(left, equal, strict=True)]


def sampled(pieces: Pieces, wanted: Sequence[int], sizes: Sequence[int], sample: int) -> list[float]:
    """Like `largest`, estimated from about `sample` evenly spaced scores of all ranks."""
    strides = [max(1, size // max(1, sample * size // max(1, sum(sizes)))) for size in sizes]
    mine: list[list[torch.Tensor]] = [[] for _ in wanted]
    for group, scores in pieces():
        mine[group].append(scores[:: strides[group]].cpu())
    everyone = everyones([torch.cat(found) if found else torch.empty(0) for found in mine])
    thresholds = []
    for group, (want, size) in enumerate(zip(wanted, sizes, strict=True)):
        pooled = torch.cat([found[group] for found in everyone])
        rank = round(want / max(1, size) * pooled.numel())
        thresholds.append(float(pooled.topk(max(1, rank)).values[-1]) if want and pooled.numel() else float("inf"))
    return thresholds


def best_units(scores: torch.Tensor, sizes: torch.Tensor, share: float) -> torch.Tensor:
    """The units with the highest scores that together hold at most a share of all parameters, as a mask.

    Args:
        scores: (units,).
        sizes: parameters of each unit, (units,).
        share: of all parameters of these units.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    held = sizes[order].cumsum(0) <= share * float(sizes.sum()) + 1e-6
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[order[held]] = True
    return mask
