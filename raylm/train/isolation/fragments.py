"""Tensors in pieces: what each rank held of a named tensor, put together for any other division.

A training state that says of every number which element of which tensor it belongs to can be resumed on another number
of ranks, and at another ZeRO stage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

Fragment = dict[str, Any]
"""`name`, `offset` of the first element, and tensors of the same length by what they hold."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Where a named tensor, or a rank's part of it, lies in a flat parameter."""

    name: str
    start: int
    """Of its first element in the flat parameter."""
    length: int
    offset: int
    """Of its first element in the flattened tensor."""
    shape: tuple[int, ...]
    """Of the whole tensor."""


class Fragments:
    """All ranks' fragments."""

    def __init__(self, fragments: Iterable[Fragment]) -> None:
        self._by_name: dict[str, list[Fragment]] = defaultdict(list)
        for fragment in fragments:
            self._by_name[fragment["name"]].append(fragment)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors, where the fragments say it."""
        return {name: tuple(held[0]["shape"]) for name, held in self._by_name.items() if "shape" in held[0]}

    @property
    def names(self) -> set[str]:
        """Tensors that there is anything of."""
        return set(self._by_name)

    def assemble(self, segment: Segment, key: str) -> torch.Tensor | None:
        """The `key` of the elements of a segment, (length,); None where no fragment of it has one.

        Raises:
            ValueError: some elements are in no fragment.
        """
        result: torch.Tensor | None = None
        missing = segment.length
        for fragment in self._by_name[segment.name]:
            values = fragment.get(key)
            if values is None:
                continue
            low = max(segment.offset, fragment["offset"])
            high = min(segment.offset + segment.length, fragment["offset"] + values.numel())
            if low >= high:
                continue
            result = values.new_empty(segment.length) if result is None else result
            part = values.view(-1)[low - fragment["offset"] : high - fragment["offset"]]
            result[low - segment.offset : high - segment.offset] = part
            missing -= high - low
        if result is not None and missing:
            raise ValueError(f"{segment.name}: {missing} of {segment.length} elements are not in the state")
        return result
