"""A rank's share of a named tensor, with its importance and its mask."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from raylm.errors import UserError
from raylm.train.isolation.collectives import everyones
from raylm.train.isolation.fragments import Segment


def piece(device: torch.device) -> int:
    """Elements worked on at a time: what stays in a CPU's cache from one operation to the next; a quarter GiB else."""
    return 1 << 17 if device.type == "cpu" else 1 << 26


@dataclass(slots=True)
class Part:
    """What isolation knows of one segment; every tensor is flat."""

    param: torch.Tensor
    segment: Segment
    importance: dict[str, torch.Tensor] = field(default_factory=dict)
    """By task, float32; "" where all samples count together. For the score `moved` the values at the start."""
    even: torch.Tensor | None = None
    """What the steps of even number gave of the importance."""
    bits: torch.Tensor | None = None
    """The mask."""
    first: torch.Tensor | None = None
    """The first mask, in the host's memory."""
    first_even: torch.Tensor | None = None
    """The first mask of the even steps alone, where noise is measured."""
    ramp: torch.Tensor | None = None
    """What the last refresh released, where it comes back gradually."""
    chosen: list[torch.Tensor] = field(default_factory=list)
    """What the last refreshes chose, the newest last, where hysteresis looks back."""
    levels: torch.Tensor | None = None
    """Soft mask: uint8, 255 where a step is whole."""

    @property
    def name(self) -> str:
        """Of the tensor."""
        return self.segment.name

    @property
    def length(self) -> int:
        """Elements."""
        return self.segment.length

    @property
    def values(self) -> torch.Tensor:
        """The weights, a view."""
        return self.param.detach().view(-1)[self.segment.start : self.segment.start + self.segment.length]

    @property
    def gradient(self) -> torch.Tensor | None:
        """Of the weights, a view; None before the first backward pass."""
        if self.param.grad is None:
            return None
        return self.param.grad.detach().view(-1)[self.segment.start : self.segment.start + self.segment.length]

    def moment(self, optimizer: torch.optim.Optimizer | None, name: str) -> torch.Tensor | None:
        """Adam's `exp_avg` or `exp_avg_sq`, a view; None before the first step."""
        state = optimizer.state.get(self.param) if optimizer is not None else None
        if not state:
            return None
        if name not in state:
            raise ValueError(f"{type(optimizer).__name__} keeps no {name}; this isolation needs an Adam")
        return state[name].view(-1)[self.segment.start : self.segment.start + self.segment.length]

    def windows(self) -> Iterator[slice]:
        """Slices of the segment of the size of a piece; all but the last are multiples of 8 long."""
        size = piece(self.param.device)
        for start in range(0, self.length, size):
            yield slice(start, min(start + size, self.length))


def whole(parameters: nn.Module | Iterable[tuple[str, nn.Parameter]]) -> list[tuple[torch.Tensor, Sequence[Segment]]]:
    """Every trainable parameter of a model, or of (name, parameter) pairs, as one segment.

    Raises:
        ValueError: a parameter is not contiguous, so that it cannot be flattened without a copy.
    """
    named = parameters.named_parameters() if isinstance(parameters, nn.Module) else parameters
    found: list[tuple[torch.Tensor, Sequence[Segment]]] = []
    for name, param in named:
        if not param.requires_grad:
            continue
        if not param.is_contiguous():
            raise ValueError(f"{name} is not contiguous in memory")
        found.append((param, [Segment(name, 0, param.numel(), 0, tuple(param.shape))]))
    return found


def chosen(segments: Sequence[Segment], include: Sequence[str], exclude: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Name to shape of the tensors of all ranks that the patterns let through, sorted by name.

    Raises:
        UserError: a pattern fits no tensor, or nothing is left.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for found in everyones({segment.name: segment.shape for segment in segments}):
        shapes |= found
    for field_name, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not fnmatch.filter(shapes, pattern):
                some = ", ".join(sorted(shapes)[:3])
                raise UserError(
                    f"isolation.{field_name}: no trainable tensor is called {pattern!r}; names are like {some}"
                )
    kept = {
        name: shapes[name]
        for name in sorted(shapes)
        if (not include or any(fnmatch.fnmatchcase(name, pattern) for pattern in include))
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not kept:
        raise UserError("isolation.include and isolation.exclude leave no tensor to protect; use enabled=false instead")
    return kept
