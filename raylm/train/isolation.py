"""Evolving parameter isolation (EPI, arXiv 2604.14010, as implemented here): a mask of parameters that stand still.

Importance is a moving average of squared gradients, taken before clipping. Every K steps after a warm-up, the share p
with the largest importance, normalised within each tensor, is protected until the next refresh: the optimizer's whole
step, decay included, is undone for it. Gradients, moments and importance go on, so that protection can end again.

    I <- beta I + (1 - beta) g^2          (source: a secondary reader of the paper; beta is ours)
    In = I / (mean of I over its tensor)  (mean form: source: our choice)
    protected = In >= (1 - p) quantile    (global over tensors and ranks)

A squared batch gradient is not a Fisher information; it is used as a ranking only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from raylm.train.config import IsolationConfig

_PIECE = 1 << 17


@dataclass(frozen=True, slots=True)
class Segment:
    """Where a named tensor, or a rank's part of it, lies in a flat parameter."""

    name: str
    start: int
    length: int


@dataclass(slots=True)
class _Part:
    """One flat parameter of this rank with its importance and mask."""

    param: torch.Tensor
    segments: list[Segment]
    importance: torch.Tensor
    mask: torch.Tensor | None = None
    first: torch.Tensor | None = None


class Isolation:
    """Protects the parameters of any training loop.

    Call `observe` when gradients are complete, `hold` before the optimizer's step and `release` after it, and `refresh`
    when `due`. Works on whole tensors and on a rank's flat partition of them; masks are global over all ranks.
    """

    def __init__(self, config: IsolationConfig, parts: Iterable[tuple[torch.Tensor, Sequence[Segment]]]) -> None:
        """Watch `parts`: each a parameter, flattened by view, with the tensors that it holds.

        Args:
            config: share, schedule and decay.
            parts: (parameter, segments); every rank names its segments alike, and padding lies outside of them.
        """
        self.config = config
        self.observed = 0
        self._parts = [
            _Part(param, list(segments), torch.zeros(param.numel(), dtype=torch.float32, device=param.device))
            for param, segments in parts
        ]
        names = {segment.name for part in self._parts for segment in part.segments}
        self.names = sorted(_union(names))

    def observe(self, scale: float = 1.0) -> None:
        """Fold the parameters' gradients, times `scale`, into their importance."""
        beta = self.config.beta
        for part in self._parts:
            if part.param.grad is not None:
                gradient = part.param.grad.detach().reshape(-1).float()
                part.importance.mul_(beta).addcmul_(gradient, gradient, value=(1 - beta) * scale**2)
        self.observed += 1

    def hold(self) -> list[torch.Tensor | None]:
        """Copies of the protected values, for `release`."""
        return [None if part.mask is None else _flat(part.param)[part.mask].clone() for part in self._parts]

    def release(self, held: Sequence[torch.Tensor | None]) -> None:
        """Put the protected values back, bit for bit."""
        for part, values in zip(self._parts, held, strict=True):
            if values is not None:
                _flat(part.param)[part.mask] = values

    def due(self, step: int) -> bool:
        """Whether the mask is made anew after optimizer step `step`, counted from 1."""
        config = self.config
        past = step - config.warmup
        return config.enabled and config.protect > 0 and past >= 0 and past % config.refresh_every == 0

    def refresh(self, step: int) -> dict[str, Any]:
        """Make the mask anew; all ranks together.

        Returns:
            a log row: step, threshold, density, jaccard_previous and jaccard_first (None at the first mask), entered
            and released (parameters), parameters, and layers {tensor: density}.
        """
        means = self._means()
        scores = [self._normalised(part, means) for part in self._parts]
        threshold = self._threshold(scores)
        counts = dict.fromkeys(("protected", "previous", "both", "either", "first", "both_first", "either_first"), 0)
        layers = torch.zeros(len(self.names), 2, dtype=torch.float64)
        fresh = all(part.mask is None for part in self._parts)
        for part, score in zip(self._parts, scores, strict=True):
            old, new = part.mask, score >= threshold
            part.mask = new
            part.first = new.clone() if part.first is None else part.first
            counts["protected"] += int(new.sum())
            counts["both_first"] += int((new & part.first).sum())
            counts["either_first"] += int((new | part.first).sum())
            if old is not None:
                counts["previous"] += int(old.sum())
                counts["both"] += int((new & old).sum())
                counts["either"] += int((new | old).sum())
            for segment in part.segments:
                inside = new[segment.start : segment.start + segment.length]
                layers[self.names.index(segment.name)] += torch.tensor([int(inside.sum()), segment.length])
        return self._row(step, threshold, counts, layers, fresh)

    def bytes(self) -> int:
        """Memory of this rank's importance and masks."""
        kept = [tensor for part in self._parts for tensor in (part.importance, part.mask, part.first)]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept if tensor is not None)

    def state_dict(self) -> dict[str, Any]:
        """Importance and masks of this rank."""
        return {
            "observed": self.observed,
            "parts": [{"importance": part.importance, "mask": part.mask, "first": part.first} for part in self._parts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: the state is of another model or another number of ranks.
        """
        sizes = [part["importance"].numel() for part in state["parts"]]
        mine = [part.importance.numel() for part in self._parts]
        if sizes != mine:
            raise ValueError(f"isolation state holds parts of {sizes} parameters, this rank has {mine}")
        self.observed = state["observed"]
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.importance.copy_(saved["importance"])
            part.mask, part.first = saved["mask"], saved["first"]

    def _means(self) -> torch.Tensor:
        """Mean importance of every named tensor over all ranks, in the order of `names`."""
        sums = torch.zeros(len(self.names), 2, dtype=torch.float64)
        for part in self._parts:
            for segment in part.segments:
                values = part.importance[segment.start : segment.start + segment.length]
                sums[self.names.index(segment.name)] += torch.tensor([float(values.double().sum()), segment.length])
        sums = _sum(sums)
        return sums[:, 0] / sums[:, 1].clamp(min=1)

    def _normalised(self, part: _Part, means: torch.Tensor) -> torch.Tensor:
        # The bias correction 1 / (1 - beta^t) is the same factor above and below the line, and cancels.
        scores = torch.full_like(part.importance, -1.0)  # padding is never protected
        for segment in part.segments:
            mean = float(means[self.names.index(segment.name)])
            window = slice(segment.start, segment.start + segment.length)
            scores[window] = part.importance[window] / (mean + 1e-30)
        return scores

    def _threshold(self, scores: Sequence[torch.Tensor]) -> float:
        """The (1 - p) quantile of the scores of all ranks, from evenly spaced ones where there are many."""
        if self.config.protect >= 1:
            return 0.0
        local = torch.cat([score[score >= 0] for score in scores])
        total = int(_sum(torch.tensor([local.numel()], dtype=torch.float64))[0])
        stride = max(1, -(-total // self.config.sample))
        pooled = torch.cat(_gather(local[::stride].contiguous()))
        rank = min(pooled.numel() - 1, int(pooled.numel() * (1 - self.config.protect)))
        return float(pooled.kthvalue(rank + 1).values)

    def _row(
        self, step: int, threshold: float, counts: dict[str, int], layers: torch.Tensor, fresh: bool
    ) -> dict[str, Any]:
        totals = dict(zip(counts, _sum(torch.tensor(list(counts.values()), dtype=torch.float64)).tolist(), strict=True))
        layers = _sum(layers)
        return {
            "step": step,
            "threshold": threshold,
            "parameters": int(layers[:, 1].sum()),
            "density": totals["protected"] / float(layers[:, 1].sum()),
            "jaccard_previous": None if fresh else totals["both"] / max(1.0, totals["either"]),
            "jaccard_first": None if fresh else totals["both_first"] / max(1.0, totals["either_first"]),
            "entered": int(totals["protected"] - totals["both"]),
            "released": int(totals["previous"] - totals["both"]),
            "layers": {name: round(float(layers[i, 0] / layers[i, 1]), 6) for i, name in enumerate(self.names)},
        }


class IsolatedAdamW(torch.optim.AdamW):
    """AdamW with clipping by the global norm and isolation, on whole parameters or on ZeRO's flat partitions.

    Without a mask a step is exactly torch's.
    """

    def __init__(self, params: Iterable[Any], *, clip: float, **options: Any) -> None:
        super().__init__(params, fused=True, **options)  # one pass over the memory instead of ten
        self.clip = clip
        self.isolation: Isolation | None = None
        self.grad_norm = 0.0
        """Global norm of the last step's gradient, before clipping."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Observe, clip, step, and put the protected values back.

        Raises:
            FloatingPointError: the gradient is not finite; nothing was changed.
        """
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        squares = sum((_squares(gradient) for gradient in gradients), torch.zeros((), dtype=torch.float64))
        self.grad_norm = float(_sum(squares.reshape(1))[0] if self.partitioned else squares) ** 0.5
        if self.grad_norm != self.grad_norm or self.grad_norm == float("inf"):
            raise FloatingPointError(f"the gradient's norm is {self.grad_norm}")
        isolation = self.isolation
        if isolation is not None:
            isolation.observe()
        if self.clip and self.grad_norm > self.clip:
            for gradient in gradients:
                gradient.mul_(self.clip / (self.grad_norm + 1e-6))
        held = isolation.hold() if isolation is not None else []
        super().step(closure)
        if isolation is not None:
            isolation.release(held)

    partitioned = False
    """Whether each rank holds another part of the parameters, so that norms are summed over ranks."""


def _squares(values: torch.Tensor) -> torch.Tensor:
    """Sum of squares in fp64, by pieces that stay in a CPU's cache."""
    flat = values.detach().reshape(-1)
    pieces = flat.split(_PIECE) if flat.device.type == "cpu" else (flat,)
    return torch.stack([piece.double().square().sum() for piece in pieces]).sum().cpu()


def _flat(param: torch.Tensor) -> torch.Tensor:
    return param.detach().view(-1)


def _sum(values: torch.Tensor) -> torch.Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def _gather(values: torch.Tensor) -> list[torch.Tensor]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [values]
    sizes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(sizes, values.numel())
    padded = torch.zeros(max(sizes), dtype=values.dtype)
    padded[: values.numel()] = values
    parts = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def _union(names: set[str]) -> set[str]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return names
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, names)
    return set().union(*everyone)
