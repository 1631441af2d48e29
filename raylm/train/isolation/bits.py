"""Masks of one bit a parameter."""

from __future__ import annotations

import functools
import hashlib

import torch

_GATHER = 0x0102040810204080
"""Multiplying eight bytes of 0 or 1 by this collects them in the highest byte, the first one as its lowest bit."""
_LOW = (1 << 31) - 1


def pack(mask: torch.Tensor) -> torch.Tensor:
    """Bytes that hold a boolean mask (n,) in (ceil(n / 8),) uint8, the first element in the lowest bit."""
    padding, aligned = -mask.numel() % 8, mask.is_contiguous() and mask.storage_offset() % 8 == 0
    whole = mask if aligned and not padding else torch.cat([mask, mask.new_zeros(padding)])
    return ((whole.view(torch.uint8).view(torch.int64) * _GATHER) >> 56).to(torch.uint8)


def unpack(bits: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` elements of a mask that `pack` made."""
    return _bytes(bits.device).index_select(0, bits.int()).view(torch.bool)[:count]


def window(bits: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Elements start, ..., stop - 1 of a mask that `pack` made."""
    return unpack(bits[start // 8 : -(-stop // 8)], stop - start // 8 * 8)[start % 8 :]


def put_back(values: torch.Tensor, old: torch.Tensor, bits: torch.Tensor, start: int) -> None:
    """Where a mask is set, from its element `start` on, give `values` (n,) those of `old` (n,) again, bit for bit."""
    held = window(bits, start, start + values.numel())
    if values.device.type != "cpu":
        torch.where(held, old, values, out=values)
        return
    # torch.where goes element by element on CPUs. Integers wrap, so that old + (new - old) is exactly new.
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    new, before = values.view(kind), old.view(kind)
    moves = held.view(torch.int8).bitwise_xor(1).to(kind)
    torch.addcmul(before, new.sub_(before), moves, out=new)


def ones(bits: torch.Tensor) -> int:
    """How many bits are set."""
    return int(_counts(bits.device).index_select(0, bits.int()).sum()) if bits.numel() else 0


def uniform(seed: int, name: str, start: int, count: int, device: torch.device) -> torch.Tensor:
    """Numbers in [0, 1) of elements start, ..., start + count - 1 of a named tensor.

    They come from a hash of seed, name and place, and so are the same however the tensor is cut over ranks.
    """
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
    value = torch.arange(start, start + count, dtype=torch.int64, device=device)
    value = (value ^ (key & _LOW)) * 0x9E3779B1 + (key >> 33)  # 32-bit hash steps in 64-bit integers, which wrap
    for shift, factor in ((15, 0x85EBCA6B), (13, 0xC2B2AE35)):
        value = ((value & 0xFFFFFFFF) ^ ((value & 0xFFFFFFFF) >> shift)) * factor
    value = (value ^ (value >> 16)) & 0xFFFFFF
    return value.to(torch.float32) / (1 << 24)


@functools.cache
def _bytes(device: torch.device) -> torch.Tensor:
    """For every byte, its eight bits as bytes of 0 or 1, packed in an int64."""
    bits = (torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1
    return bits.to(torch.uint8).contiguous().view(torch.int64).view(-1).to(device)


@functools.cache
def _counts(device: torch.device) -> torch.Tensor:
    return ((torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1).sum(1).to(device)
