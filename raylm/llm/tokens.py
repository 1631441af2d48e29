"""Texts as token ids for encoders: cut where they are too long, counted, and padded batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch


class Tokens:
    """Texts as ids, and how many of them were longer than what is read."""

    def __init__(self, texts: Sequence[str], tokenizer: Any, max_length: int) -> None:
        """Tokenize texts; those that are longer are cut and counted. A cut text keeps its closing token."""
        found = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"] if texts else []
        self.overlong = sum(len(ids) > max_length for ids in found)
        special = set(tokenizer.all_special_ids)
        self.ids = [_cut(ids, max_length, special) for ids in found]
        self.padding = tokenizer.pad_token_id or 0

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, places: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask of some texts, [batch, longest] int64 each."""
        rows = [self.ids[place] for place in places]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.padding] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return ids, mask

    def by_length(self, size: int) -> Iterator[list[int]]:
        """Places of all texts in batches of like lengths, longest first, so that too large a batch fails at once."""
        order = sorted(range(len(self)), key=lambda place: -len(self.ids[place]))
        for start in range(0, len(order), size):
            yield order[start : start + size]


def _cut(ids: list[int], longest: int, special: set[int]) -> list[int]:
    if len(ids) <= longest:
        return ids
    return [*ids[: longest - 1], ids[-1]] if ids[-1] in special else ids[:longest]
