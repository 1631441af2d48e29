"""Keys and values of a decoder: slots for the sequences in flight, and blocks of prefixes kept for later prompts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache

BLOCK = 16
"""Tokens of one kept block."""
_GROW = 64


class SlotCache(Cache):
    """One row of keys and values a sequence, each written at the row's own length.

    A forward pass covers the first rows [0, b). Rows have different lengths: the pass writes its tokens behind each
    row's length and attention is masked by length, so that sequences join and leave without moving the others.

    Shapes: keys[layer] and values[layer] are (slots, heads, capacity, head size).
    """

    def __init__(self, slots: int) -> None:
        super().__init__(layers=[])
        self.slots = slots
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.capacity = 0
        self._rows = self._at = torch.empty(0, dtype=torch.long)
        self._first = self._end = 0

    def aim(self, first: int, lengths: Sequence[int], width: int) -> torch.Tensor:
        """Prepare a pass of `width` tokens over the rows from `first` on, which hold `lengths` tokens.

        Returns:
            positions (rows, width) of the new tokens.
        """
        count, start = len(lengths), torch.tensor(lengths, dtype=torch.long)
        self._first, self._end = first, max(lengths) + width
        self._rows = torch.arange(first, first + count).unsqueeze(1)
        self._at = start.unsqueeze(1) + torch.arange(width).unsqueeze(0)
        self._grow(self._end)
        return self._at

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Additive attention mask (rows, 1, width, keys) of the pass: a token sees its row up to itself."""
        visible = torch.arange(self._end).view(1, 1, -1) <= self._at.unsqueeze(-1)
        return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min).unsqueeze(1)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the pass's keys and values (rows, heads, width, head size) and return all of its rows."""
        if layer_idx == len(self.keys):
            shape = (self.slots, key_states.shape[1], self.capacity, key_states.shape[3])
            self.keys.append(key_states.new_zeros(shape))
            self.values.append(value_states.new_zeros(shape))
        rows = slice(self._first, self._first + len(self._rows))
        for cache, states in ((self.keys, key_states), (self.values, value_states)):
            cache[layer_idx][self._rows, :, self._at] = states.transpose(1, 2)
        return self.keys[layer_idx][rows, :, : self._end], self.values[layer_idx][rows, :, : self._end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always given, so no caller needs this."""
        return 0

    def copy(self, source: int, target: int, length: int) -> None:
        """Make row `target` a copy of the first `length` tokens of row `source`."""
        for cache in (*self.keys, *self.values):
            cache[target, :, :length] = cache[source, :, :length]

    def read(self, row: int, start: int, end: int) -> torch.Tensor:
        """Tokens [start, end) of a row, as (layers, 2, heads, tokens, head size)."""
        pairs = zip(self.keys, self.values, strict=True)
        return torch.stack([torch.stack((key[row, :, start:end], value[row, :, start:end])) for key, value in pairs])

    def write(self, row: int, start: int, block: torch.Tensor) -> None:
        """Put tokens, in the form of `read`, into a row from `start` on."""
        end = start + block.shape[3]
        self._grow(end)
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            key[row, :, start:end], value[row, :, start:end] = block[layer, 0], block[layer, 1]

    def _grow(self, needed: int) -> None:
        if needed <= self.capacity:
            return
        self.capacity = -(-max(needed, self.capacity * 5 // 4) // _GROW) * _GROW
        for cache in (self.keys, self.values):
            for layer, old in enumerate(cache):
                cache[layer] = old.new_zeros((*old.shape[:2], self.capacity, old.shape[3]))
                cache[layer][:, :, : old.shape[2]] = old


class PrefixCache:
    """Blocks of BLOCK tokens found by the whole prefix that they end, least recently used first to go."""

    def __init__(self, limit_bytes: float) -> None:
        self.limit, self.bytes = limit_bytes, 0
        self._blocks: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()

    def find(self, ids: Sequence[int]) -> list[torch.Tensor]:
        """The longest run of kept blocks that `ids` begins with, short of its last token."""
        found: list[torch.Tensor] = []
        for end in range(BLOCK, len(ids), BLOCK):
            key = tuple(ids[:end])
            block = self._blocks.get(key)
            if block is None:
                break
            self._blocks.move_to_end(key)
            found.append(block)
        return found

    def keep(self, ids: Sequence[int], cache: SlotCache, row: int) -> None:
        """Keep every whole block of `ids`, whose keys and values stand in `row`."""
        for end in range(BLOCK, len(ids) + 1, BLOCK):
            key = tuple(ids[:end])
            if key in self._blocks:
                self._blocks.move_to_end(key)
                continue
            block = cache.read(row, end - BLOCK, end)
            self._blocks[key] = block
            self.bytes += block.nbytes
        while self.bytes > self.limit and self._blocks:
            self.bytes -= self._blocks.popitem(last=False)[1].nbytes
