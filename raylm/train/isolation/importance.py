"""How much each parameter matters: scores, and what makes them comparable between tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from raylm.train.config import IsolationConfig
from raylm.train.isolation.collectives import everyones, total
from raylm.train.isolation.parts import Part

POOLED = ""
"""Task of all samples together."""
_TINY = 1e-30


class Growth:
    """Weights of a moving average that is a growing sum: observation t weighs beta^-t, and unit(t) brings it back.

    The sum is shrunk by a power of two, which rounds nothing, before the weights leave the range of float32.
    """

    _BITS = 40
    """The sum is shrunk whenever weights have grown by so many bits."""

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self._rate = -math.log2(beta) if beta else 0.0

    def weight(self, count: int) -> float:
        """Of observation `count`, counted from 1."""
        return float(2.0 ** (count * self._rate - self._BITS * self._shrunk(count)))

    def shrink(self, count: int) -> float:
        """What the sum is multiplied by before observation `count` is added."""
        if self.beta == 0:
            return 0.0  # the last observation is all there is
        return float(2.0 ** (self._BITS * (self._shrunk(count - 1) - self._shrunk(count))))

    def unit(self, count: int) -> float:
        """What the sum of `count` observations is multiplied by to be the moving average."""
        return (1 - self.beta) / self.weight(count)

    def _shrunk(self, count: int) -> int:
        return int(count * self._rate // self._BITS)


class Importance:
    """Importance of a rank's parameters.

        I <- beta I + (1 - beta) g^2           score g2 (source: a secondary reader of arXiv 2604.14010; beta is ours)
        I <- beta I + (1 - beta) |theta g|     score theta_g (source: our option; the first order of a Taylor expansion)
        I = |m| / sqrt(v)                      score adam (source: our option; AdamW's own moments)
        I = |theta - theta_0|                  score moved (source: CPI-FT, arXiv 2508.21741)

    g is the gradient before clipping, summed over micro-steps and ranks. A squared batch gradient is not a Fisher
    information: it ranks parameters and says no more. The bias correction 1 / (1 - beta^t) is one factor for all
    parameters, so that it changes no ranking, and is left out.

    What is held is I / `Growth.unit`: observations that weigh more and more leave the sum before them alone, which
    spares a pass over memory a step.
    """

    def __init__(self, config: IsolationConfig, parts: Sequence[Part], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Importance of `parts`; `shapes` are the tensors of all ranks, in the order of their numbers."""
        self.config, self.parts = config, parts
        self.optimizer: torch.optim.Optimizer | None = None
        self.numbers = {name: number for number, name in enumerate(shapes)}
        self.sizes = [torch.Size(shape).numel() for shape in shapes.values()]
        self.growth = Growth(config.beta)
        self.observed: dict[str, int] = {}
        """Observations, by task."""
        self.watches = config.choose != "random" and config.score in ("g2", "theta_g") and config.source != "file"
        if config.score == "moved" and config.choose != "random" and config.source != "file":
            for part in parts:
                part.importance[POOLED] = part.values.clone()

    @property
    def tasks(self) -> list[str]:
        """Those that there is importance of."""
        return sorted(self.observed) if self.watches else [POOLED]

    def begin(self, task: str) -> str:
        """Count an observation of a task, and make room for it; returns the task whose importance it adds to."""
        task = task if self.config.scope == "per_task" else POOLED
        self.observed[task] = self.observed.get(task, 0) + 1
        shrink = self.growth.shrink(self.observed[task])
        for part in self.parts if self.watches else ():
            if task not in part.importance:
                part.importance[task] = torch.zeros(part.length, dtype=torch.float32, device=part.param.device)
            if self.config.measure_noise and part.even is None:
                part.even = torch.zeros(part.length, dtype=torch.float32, device=part.param.device)
            if shrink != 1.0:
                part.importance[task].mul_(shrink)
                if part.even is not None:
                    part.even.mul_(shrink)
        return task

    def observe(self, part: Part, task: str, window: slice, gradient: torch.Tensor, scale: float) -> None:
        """Fold the gradient of a window, times `scale`, into its importance."""
        count, gradient = self.observed[task], gradient.float()
        averages = [part.importance[task][window]]
        if part.even is not None and count % 2 == 0:
            averages.append(part.even[window])
        weight = self.growth.weight(count) * (scale**2 if self.config.score == "g2" else scale)
        if self.config.score == "g2":
            for average in averages:
                average.addcmul_(gradient, gradient, value=weight)
            return
        new = torch.mul(gradient, part.values[window].float()).abs_()
        for average in averages:
            average.add_(new, alpha=weight)

    def raw(self, part: Part, task: str, window: slice, half: int | None = None) -> torch.Tensor:
        """Scores of a window before normalisation; `half` 0 or 1 takes the even or the odd steps alone."""
        if self.config.score == "adam":
            first, second = part.moment(self.optimizer, "exp_avg"), part.moment(self.optimizer, "exp_avg_sq")
            if first is None or second is None:
                return torch.zeros(window.stop - window.start, device=part.param.device)
            return first[window].float().abs() / (second[window].float().sqrt() + 1e-12)
        if self.config.score == "moved":
            return (part.values[window].float() - part.importance[task][window].float()).abs()
        if half is None:
            return part.importance[task][window]
        assert part.even is not None
        even = part.even[window]
        return even if half == 0 else (part.importance[task][window] - even).clamp_(min=0)

    def scales(self, task: str, half: int | None = None) -> list[float]:
        """By tensor, what its scores are multiplied by: 1 over their mean or largest over all ranks."""
        if self.config.normalise == "rank":
            return [1.0] * len(self.sizes)
        if self.config.normalise == "none":
            return [self.growth.unit(self.observed.get(task, 0)) if self.watches else 1.0] * len(self.sizes)
        found = torch.zeros(len(self.sizes), dtype=torch.float64)
        mean = self.config.normalise == "mean"
        for part in self.parts:
            number = self.numbers[part.name]
            for window in part.windows():
                scores = self.raw(part, task, window, half)
                if mean:
                    found[number] += float(scores.sum(dtype=torch.float64))
                else:
                    found[number] = max(float(found[number]), float(scores.max()))
        found = total(found) / torch.tensor(self.sizes) if mean else torch.stack(everyones(found)).amax(0)
        return (1.0 / (found + _TINY)).tolist()

    def scores(self, part: Part, task: str, scales: Sequence[float], half: int | None = None) -> Iterator[torch.Tensor]:
        """Normalised scores of a part, window by window."""
        scale = scales[self.numbers[part.name]]
        for window in part.windows():
            raw = self.raw(part, task, window, half)
            yield raw if scale == 1.0 else (raw * scale).clamp_(max=3e38)
