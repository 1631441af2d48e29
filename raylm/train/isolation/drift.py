"""How masks move: densities and overlaps over all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from raylm.train.isolation.bits import ones
from raylm.train.isolation.collectives import total
from raylm.train.isolation.masks import Masks
from raylm.train.isolation.parts import Part


def overlap(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Jaccard index of two masks over all ranks, given in packed pieces; 1 for two empty ones."""
    both = sum(ones(left & right) for left, right in pairs)
    either = sum(ones(left | right) for left, right in pairs)
    counts = total(torch.tensor([both, either], dtype=torch.float64)).tolist()
    return counts[0] / counts[1] if counts[1] else 1.0


def row(
    parts: Sequence[Part], old: Sequence[torch.Tensor | None], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """What a refresh changed, from the masks before and after it. Keeps the first mask for later comparisons."""
    numbers = {name: number for number, name in enumerate(shapes)}
    layers = torch.zeros(len(shapes), dtype=torch.float64)
    entered = released = 0
    now: Masks = []
    for part, before in zip(parts, old, strict=True):
        assert part.bits is not None
        now.append(part.bits)
        layers[numbers[part.name]] += ones(part.bits)
        entered += ones(part.bits & ~before) if before is not None else ones(part.bits)
        released += ones(before & ~part.bits) if before is not None else 0
    # A rank may hold no part at all, so that whether this is the first mask is asked of all of them.
    seen, *moved = total(torch.tensor([sum(b is not None for b in old), entered, released]).double()).tolist()
    layers = total(layers)
    sizes = torch.tensor([torch.Size(shape).numel() for shape in shapes.values()], dtype=torch.float64)
    found: dict[str, Any] = {
        "parameters": int(sizes.sum()),
        "density": float(layers.sum() / sizes.sum()),
        "entered": int(moved[0]),
        "released": int(moved[1]),
        "jaccard_previous": None,
        "jaccard_first": None,
        "layers": {name: round(float(layers[n] / sizes[n]), 6) for name, n in numbers.items()},
    }
    if seen:
        found["jaccard_previous"] = overlap([(a, b) for a, b in zip(now, old, strict=True) if b is not None])
        first = [(part.bits.cpu(), part.first) for part in parts if part.bits is not None and part.first is not None]
        found["jaccard_first"] = overlap(first)
    else:
        for part, mask in zip(parts, now, strict=True):
            part.first = mask.cpu().clone()
    return found


def noise(halves: tuple[Masks, Masks], parts: Sequence[Part]) -> dict[str, Any]:
    """Overlap of masks from the even and from the odd steps: what noise alone leaves of it.

    `halves_first` is that of the odd steps' mask now with the even steps' first one: with the same samples behind each
    it falls below `noise_ceiling` only where importance has moved. Both are None while one half has seen no step.
    """
    even, odd = halves
    marked = total(torch.tensor([sum(map(ones, half)) for half in halves], dtype=torch.float64))
    if not marked.all():
        return {"noise_ceiling": None, "halves_first": None}
    for part, mask in zip(parts, even, strict=True):
        if part.first_even is None:
            part.first_even = mask.cpu().clone()
    pairs = zip(parts, odd, strict=True)
    first = [(mask.cpu(), part.first_even) for part, mask in pairs if part.first_even is not None]
    return {"noise_ceiling": overlap(list(zip(even, odd, strict=True))), "halves_first": overlap(first)}
