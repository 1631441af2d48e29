"""Keys and values of the running sequences in one preallocated tensor, and attention over it.

Each sequence owns a slot; the running ones are the slots 0..n-1, so that a decoding step attends over a plain view. A
step is one forward pass over a packed row of tokens: one token of each decoding sequence, then the new
tokens of each sequence that begins. Queries that share a key head are folded into the query length, which spares
the copy of keys and values for each query head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

NAME = "raylm_slots"
"""Under which `attend` is registered as an attention implementation of transformers."""
_WIDTHS = (64, 128, 192, 384, 448, 512)
_MIN_ROWS = 4


def width(tokens: int) -> int:
    """Tokens that attention runs over for a sequence of `tokens`: a few sizes only, masked at the end.

    Matrix products add in an order that depends on their size. Between these sizes, and with at least four rows, it
    was seen not to (fp32, MKL), so that a sequence's numbers do not change with the company it is in.
    """
    whole, rest = divmod(tokens, _WIDTHS[-1])
    return whole * _WIDTHS[-1] + (next(size for size in _WIDTHS if size >= rest) if rest else 0)


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the size of the keys and values."""

    layers: int
    heads: int
    """Key heads."""
    head_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.heads * self.head_size * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Segment:
    """New tokens of one beginning sequence."""

    slot: int
    start: int
    """Tokens of the sequence that the slot holds already."""
    length: int


@dataclass(slots=True)
class Step:
    """How the packed tokens of one forward pass are laid out."""

    kv: KvSlots
    lengths: torch.Tensor
    """[decoding sequences]: tokens that each slot holds before this step."""
    longest: int
    """The greatest of `lengths`, 0 without any."""
    segments: Sequence[Segment]
    _masks: dict[Any, torch.Tensor] = field(default_factory=dict)

    def decode_mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """[sequences, 1, 1, width] added to the scores: 0 where a key may be seen, -inf elsewhere."""
        if ("decode", window) not in self._masks:
            last = self.lengths[:, None]
            keys = torch.arange(width(self.longest + 1), device=last.device)[None]
            self._masks["decode", window] = _additive(keys, last, window, dtype)[:, None, None]
        return self._masks["decode", window]

    def segment_mask(self, segment: Segment, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """[tokens rounded up, width] added to the scores."""
        key = (segment.start, segment.length, window)
        if key not in self._masks:
            device = self.lengths.device
            queries = torch.arange(_round_up(segment.length), device=device)[:, None] + segment.start
            keys = torch.arange(width(segment.start + segment.length), device=device)[None]
            self._masks[key] = _additive(keys, queries, window, dtype)
        return self._masks[key]


class KvSlots:
    """The tensor [keys or values, layer, slot, key head, token, head size]; `capacity` tokens a slot."""

    def __init__(self, shape: Shape, max_rows: int, max_tokens: int) -> None:
        self.shape, self.max_rows, self.max_tokens = shape, max_rows, max_tokens
        self.capacity = 0
        self.data = torch.empty(0)

    def rows(self, capacity: int) -> int:
        """Slots that fit with so many tokens each."""
        return min(self.max_rows, self.max_tokens // capacity)

    def reserve(self, tokens: int, lengths: Sequence[int]) -> bool:
        """Make every slot hold `tokens`, keeping the first `len(lengths)` slots; False while those are too many."""
        wanted = width(tokens)
        if wanted <= self.capacity and (lengths or self.rows(self.capacity) == self.max_rows):
            return True
        if wanted == self.capacity:
            return True
        if self.rows(wanted) < len(lengths) + 1:
            return False
        old, self.capacity = self.data, wanted
        self.data = self._zeros(self.rows(wanted))
        for slot, length in enumerate(lengths):
            self.data[:, :, slot, :, :length] = old[:, :, slot, :, :length]
        return True

    def load(self, slot: int, pieces: Sequence[torch.Tensor], length: int) -> None:
        """Lay pieces [2, layers, heads, tokens, size] end to end into a slot, up to `length` tokens."""
        start = 0
        for piece in pieces:
            end = min(start + piece.shape[-2], length)
            self.data[:, :, slot, :, start:end] = piece[..., : end - start, :]
            start = end

    def read(self, slot: int, start: int, end: int) -> torch.Tensor:
        """A copy [2, layers, heads, tokens, size] of some of a slot's tokens."""
        return self.data[:, :, slot, :, start:end].clone()

    def copy(self, source: int, first: int, last: int, length: int) -> None:
        """Copy `length` tokens of one slot into the slots first..last-1."""
        if first < last:
            self.data[:, :, first:last, :, :length] = self.data[:, :, source : source + 1, :, :length]

    def _zeros(self, rows: int) -> torch.Tensor:
        """Zeros, since masked garbage could be NaN. On a CPU the memory is taken only as it is written to."""
        size = (2, self.shape.layers, rows, self.shape.heads, self.capacity, self.shape.head_size)
        if self.shape.device.type != "cpu":
            return torch.zeros(size, dtype=self.shape.dtype, device=self.shape.device)
        raw = np.zeros(rows * self.capacity * self.shape.bytes_per_token, dtype=np.uint8)
        return torch.from_numpy(raw).view(self.shape.dtype).view(size)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    raylm_step: Step | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface over slots.

    Args:
        module: the attention layer; its `layer_idx` is used.
        query: [1, query heads, tokens, head size]; key and value have the key heads instead.
        attention_mask: unused, the step makes its own.
        scaling: factor of the scores.
        sliding_window: keys that a token sees at most, itself included.
        raylm_step: the layout of this forward pass.

    Returns:
        [1, tokens, query heads, head size], and None for the weights.
    """
    assert raylm_step is not None, "this attention works inside the engine only"
    step, (heads, tokens, size) = raylm_step, query.shape[1:]
    keys, values = step.kv.data[0, module.layer_idx], step.kv.data[1, module.layer_idx]
    layer = _Layer(step, keys, values, scaling, sliding_window)
    out = query.new_zeros(tokens, heads, size)
    decoding = len(step.lengths)
    if decoding:
        out[:decoding] = layer.decode(*(states[0, :, :decoding] for states in (query, key, value)))
    offset = decoding
    for segment in step.segments:
        here = slice(offset, offset + segment.length)
        out[here] = layer.begin(segment, *(states[0, :, here] for states in (query, key, value)))
        offset += segment.length
    return out[None], None


@dataclass(slots=True)
class _Layer:
    """The slots of one layer in one step; keys and values are [slot, key head, token, head size]."""

    step: Step
    keys: torch.Tensor
    values: torch.Tensor
    scaling: float | None
    window: int | None

    def decode(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """One more token of every decoding sequence: [heads, sequences, size] in, [sequences, heads, size] out."""
        heads, decoding, size = query.shape
        slots, key_heads = torch.arange(decoding, device=query.device), self.keys.shape[1]
        self.keys[slots, :, self.step.lengths] = key.transpose(0, 1)
        self.values[slots, :, self.step.lengths] = value.transpose(0, 1)
        folded = query.transpose(0, 1).reshape(decoding, key_heads, -1, size)
        span = width(self.step.longest + 1)
        seen = F.scaled_dot_product_attention(
            F.pad(folded, (0, 0, 0, max(0, _MIN_ROWS - folded.shape[2]))),
            self.keys[:decoding, :, :span],
            self.values[:decoding, :, :span],
            attn_mask=self.step.decode_mask(self.window, query.dtype),
            scale=self.scaling,
        )
        return seen[:, :, : heads // key_heads].reshape(decoding, heads, size)

    def begin(self, segment: Segment, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The new tokens of one sequence that begins: [heads, tokens, size] in, [tokens, heads, size] out."""
        heads, tokens, size = query.shape
        there = slice(segment.start, segment.start + tokens)
        keys, values = self.keys[segment.slot], self.values[segment.slot]
        keys[:, there], values[:, there] = key, value
        span, key_heads = width(there.stop), keys.shape[0]
        seen = F.scaled_dot_product_attention(
            F.pad(query.reshape(key_heads, heads // key_heads, tokens, size), (0, 0, 0, _round_up(tokens) - tokens)),
            keys[:, None, :span].expand(-1, heads // key_heads, -1, -1),
            values[:, None, :span].expand(-1, heads // key_heads, -1, -1),
            attn_mask=self.step.segment_mask(segment, self.window, query.dtype),
            scale=self.scaling,
        )
        return seen[:, :, :tokens].permute(2, 0, 1, 3).reshape(tokens, heads, size)


def pack(
    decoding: Sequence[tuple[int, int]], beginning: Sequence[Sequence[int]], segments: Sequence[Segment]
) -> tuple[list[int], list[int], list[int]]:
    """The packed row of a step, with at least four tokens.

    Args:
        decoding: (token, position) of each decoding sequence in the order of slots.
        beginning: new tokens of each segment.
        segments: their layout.

    Returns:
        token ids, positions, and the indices whose logits are wanted: every decoding sequence, then the last token of
        every segment.
    """
    ids, positions = [token for token, _ in decoding], [position for _, position in decoding]
    wanted = list(range(len(decoding)))
    for tokens, segment in zip(beginning, segments, strict=True):
        ids += tokens
        positions += range(segment.start, segment.start + segment.length)
        wanted.append(len(ids) - 1)
    padding = max(0, _MIN_ROWS - len(ids))
    wanted += [0] * max(0, _MIN_ROWS - len(wanted))
    return ids + [0] * padding, positions + [0] * padding, wanted


def _round_up(rows: int) -> int:
    return -(-rows // _MIN_ROWS) * _MIN_ROWS


def _additive(keys: torch.Tensor, queries: torch.Tensor, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    hidden = keys > queries
    if window:
        hidden = hidden | (keys <= queries - window)
    return torch.zeros(hidden.shape, dtype=dtype, device=keys.device).masked_fill_(hidden, float("-inf"))
