"""From importance to masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from raylm.train.config import IsolationConfig
from raylm.train.isolation import bits
from raylm.train.isolation.collectives import total
from raylm.train.isolation.importance import POOLED, Importance
from raylm.train.isolation.parts import Part
from raylm.train.isolation.select import best_units, largest, sampled

Masks = list[torch.Tensor]
"""Packed, one a part."""


class Chooser:
    """Makes masks of a share of all parameters; every rank that of its own parts."""

    def __init__(
        self,
        config: IsolationConfig,
        parts: Sequence[Part],
        importance: Importance,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.config, self.parts, self.importance, self.shapes = config, parts, importance, shapes
        self.threshold = 0.0
        """The last one: of the last task, and of the first tensor where each has its own."""

    def masks(self, share: float, refresh: int, half: int | None = None) -> Masks:
        """The mask of refresh number `refresh`, counted from 0; `half` 0 or 1 sees the even or odd steps alone."""
        found: Masks | None = None
        for task in [POOLED] if self.config.choose == "random" else self.importance.tasks:
            if self.config.granularity == "element":
                fresh = self._elements(share, refresh, task, half)
            else:
                fresh = self._units(share, refresh, task, half)
            found = fresh if found is None else [old | new for old, new in zip(found, fresh, strict=True)]
        return found if found is not None else [bits.pack(torch.zeros(part.length).bool()) for part in self.parts]

    def soften(self, part: Part) -> torch.Tensor:
        """Levels of a soft mask, uint8: 255 (1 - alpha sigmoid((score - threshold) / T)) (source: our option)."""
        scales, pieces = self.importance.scales(POOLED), []
        for scores in self.importance.scores(part, POOLED, scales):
            lost = torch.sigmoid((scores - self.threshold) / self.config.temperature)
            pieces.append((255 * (1 - self.config.alpha * lost)).round().to(torch.uint8))
        return torch.cat(pieces)

    def _elements(self, share: float, refresh: int, task: str, half: int | None) -> Masks:
        config, sizes = self.config, self.importance.sizes
        if share >= 1:
            return [bits.pack(torch.ones(p.length, dtype=torch.bool, device=p.param.device)) for p in self.parts]
        if config.choose == "random":
            return [self._random(part, refresh, share) for part in self.parts]
        by_tensor = config.normalise == "rank"
        numbers = self.importance.numbers if by_tensor else dict.fromkeys(self.importance.numbers, 0)
        groups = sizes if by_tensor else [sum(sizes)]
        wanted = [round(share * size) for size in groups]
        bottom = config.choose == "bottom"
        if bottom:  # the k smallest are all but the n - k largest
            wanted = [size - want for size, want in zip(groups, wanted, strict=True)]

        scales = self.importance.scales(task, half)

        def pieces() -> Iterable[tuple[int, torch.Tensor]]:
            for part in self.parts:
                for scores in self.importance.scores(part, task, scales, half):
                    yield numbers[part.name], scores

        if config.sample:
            thresholds, ties = sampled(pieces, wanted, groups, config.sample), [1.0] * len(groups)
        else:
            thresholds, ties = largest(pieces, wanted)
        self.threshold = thresholds[0]

        def pick(part: Part, start: int, scores: torch.Tensor) -> torch.Tensor:
            group = numbers[part.name]
            threshold, tie = thresholds[group], ties[group]
            above, level = scores > threshold, scores == threshold
            if tie < 1 and bool(level.any()):
                offset = part.segment.offset + start
                chance = bits.uniform(config.seed, f"ties/{part.name}", offset, len(scores), scores.device)
                level &= chance < tie
            taken = above | level
            if bottom:
                return ~taken
            return taken & (scores > 0)  # what never had a gradient has no importance to protect

        masks = []
        for part in self.parts:
            scored = zip(part.windows(), self.importance.scores(part, task, scales, half), strict=True)
            masks.append(torch.cat([bits.pack(pick(part, window.start, scores)) for window, scores in scored]))
        return masks

    def _random(self, part: Part, refresh: int, share: float) -> torch.Tensor:
        found = []
        for window in part.windows():
            start, count = part.segment.offset + window.start, window.stop - window.start
            draw = bits.uniform(self.config.seed, f"mask {refresh}/{part.name}", start, count, part.param.device)
            found.append(bits.pack(draw < share))
        return torch.cat(found)

    def _units(self, share: float, refresh: int, task: str, half: int | None) -> Masks:
        """Masks of whole rows or tensors."""
        rows = [self._row(name) for name in self.shapes]
        counts = [size // row for size, row in zip(self.importance.sizes, rows, strict=True)]
        starts = [sum(counts[:number]) for number in range(len(counts))]
        sizes = torch.repeat_interleave(torch.tensor(rows), torch.tensor(counts))
        if self.config.choose == "random":
            found = [bits.uniform(self.config.seed, f"unit {refresh}/{name}", 0, count, torch.device("cpu"))
                     for name, count in zip(self.shapes, counts, strict=True)]  # fmt: skip
            scores = torch.cat(found).double()
        else:
            scores = self._unit_scores(task, half, rows, starts, sum(counts)) / sizes
        scores = -scores if self.config.choose == "bottom" else scores
        if self.config.normalise == "rank" and self.config.choose != "random":
            chosen = torch.cat([
                best_units(scores[start : start + count], sizes[start : start + count], share)
                for start, count in zip(starts, counts, strict=True)
            ])  # fmt: skip
        else:
            chosen = best_units(scores, sizes, share)
        self.threshold = abs(float(scores[chosen].min())) if bool(chosen.any()) else float("inf")
        masks = []
        for part in self.parts:
            number = self.importance.numbers[part.name]
            units = self._units_of(part, slice(0, part.length), rows[number]) + starts[number]
            masks.append(bits.pack(chosen.to(part.param.device)[units]))
        return masks

    def _row(self, name: str) -> int:
        """Elements of a unit of a tensor."""
        shape = self.shapes[name]
        if self.config.granularity == "tensor":
            return max(1, torch.Size(shape).numel())
        return max(1, torch.Size(shape[1:]).numel()) if len(shape) > 1 else 1

    def _unit_scores(
        self, task: str, half: int | None, rows: Sequence[int], starts: Sequence[int], units: int
    ) -> torch.Tensor:
        """Sum of the normalised scores of every unit of all ranks, (units,)."""
        sums = torch.zeros(units, dtype=torch.float64)
        scales = self.importance.scales(task, half)
        for part in self.parts:
            number = self.importance.numbers[part.name]
            scored = self.importance.scores(part, task, scales, half)
            for window, scores in zip(part.windows(), scored, strict=True):
                where = self._units_of(part, window, rows[number]).cpu() + starts[number]
                sums.index_add_(0, where, scores.double().cpu())
        return total(sums)

    def _units_of(self, part: Part, window: slice, row: int) -> torch.Tensor:
        low = part.segment.offset
        return torch.arange(low + window.start, low + window.stop, device=part.param.device) // row
