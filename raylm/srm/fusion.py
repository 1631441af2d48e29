"""Fusions: how the branches' values become one score, and what each of them did to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from raylm.srm.backbone import Prompt
from raylm.srm.branches import ABSENT, Inputs
from raylm.srm.config import BranchConfig, FusionConfig

Reader = Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], torch.Tensor]
"""Prompts, notes and responses to the backbone's features, [batch, width]."""


@dataclass(frozen=True, slots=True)
class Fused:
    """Scores of a batch."""

    score: torch.Tensor
    """[batch], log-odds against an average response."""
    attribution: torch.Tensor
    """[batch, branches], what each branch adds to the score against its reference."""


class Fusion(nn.Module):
    """What both kinds share: the branches' references, and the affine map that calibration fits."""

    centre: torch.Tensor
    spread: torch.Tensor
    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, specs: Sequence[BranchConfig]) -> None:
        super().__init__()
        self.specs = tuple(specs)
        for name, value in (("centre", torch.zeros(len(specs))), ("spread", torch.ones(len(specs)))):
            self.register_buffer(name, value)
        for name, value in (("shift", torch.zeros(())), ("scale", torch.ones(()))):
            self.register_buffer(name, value)

    def standard(self, values: torch.Tensor) -> torch.Tensor:
        """Values against their references, in standard deviations; absent ones are at the reference, 0."""
        found = ((values - self.centre) / self.spread).clamp(-5.0, 5.0)
        return torch.nan_to_num(found, nan=0.0)

    def forward(self, inputs: Inputs, values: torch.Tensor, explain: bool = True) -> Fused:
        """Scores and attributions.

        Args:
            values: [batch, branches], NaN where a branch is absent.
            explain: whether attributions are asked for, where they cost more than the score.
        """
        raise NotImplementedError


class AdditiveFusion(Fusion):
    """score = bias + sum over branches of weight(prompt) * standardised value: attributions are exact.

    The weights see the prompt alone, so that two responses to it are weighed alike.
    source: Wang et al. (2024), "Interpretable preferences via multi-objective reward modeling" (ArmoRM), eq. 3, whose
    gate is a softmax over all weights; here each is free, or positive by softplus (I).
    """

    gated: torch.Tensor

    def __init__(self, specs: Sequence[BranchConfig], config: FusionConfig, context: int) -> None:
        """Begin with equal weights that no prompt changes.

        Args:
            context: dimensions of what the gate knows of a prompt.
        """
        super().__init__(specs)
        self.register_buffer("rises", torch.tensor([spec.rises for spec in specs]))
        start = torch.where(self.rises, torch.tensor(1.0 / max(1, len(specs))).expm1().log(), torch.tensor(0.0))
        self.weight, self.bias = nn.Parameter(start), nn.Parameter(torch.zeros(()))
        self.gate: nn.Sequential | None = None
        self.register_buffer("gated", torch.ones(()))  # 0 where training has found that a gate does not help
        if config.gate != "constant":
            down, up = (
                nn.Linear(context, config.gate_rank, bias=False),
                nn.Linear(config.gate_rank, len(specs), bias=False),
            )
            nn.init.zeros_(up.weight)
            self.gate = nn.Sequential(down, up)

    def weights(self, contexts: torch.Tensor) -> torch.Tensor:
        """Weights of all branches for prompts, [batch, branches]."""
        free = self.weight.expand(len(contexts), -1)
        if self.gate is not None:
            free = free + self.gated * self.gate(contexts.clamp(-5.0, 5.0) / contexts.shape[1] ** 0.5)
        return torch.where(self.rises, nn.functional.softplus(free), free)

    def forward(self, inputs: Inputs, values: torch.Tensor, explain: bool = True) -> Fused:
        attribution = self.weights(inputs.contexts) * self.standard(values) * self.scale
        return Fused(self.offset + attribution.sum(1), attribution)

    @property
    def offset(self) -> torch.Tensor:
        """The score of a response that is average in everything."""
        return (self.bias - self.shift) * self.scale


class TextFusion(Fusion):
    """A scalar head over prompt, branches' texts and response, in a second pass of the backbone.

    source: method page, s = f([p; r; a_1 .. a_n]) with a scalar head (S). An attribution is the score less the score
    with that branch absent (I): exact for one branch, not additive over branches.
    """

    center: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, specs: Sequence[BranchConfig], config: FusionConfig, width: int, reader: Reader) -> None:
        super().__init__(specs)
        self.limit, self._reader = config.branch_tokens, [reader]  # in a list, so that its weights are not ours
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def notes(self, inputs: Inputs, values: torch.Tensor) -> list[str]:
        """What the head reads of the branches, one text a row."""
        said = [
            [
                f"{spec.name}: {self._said(spec, inputs, row, value)}"
                for spec, value in zip(self.specs, own, strict=True)
            ]
            for row, own in enumerate(values.tolist())
        ]
        return ["\n".join(lines) for lines in said]

    def read(self, inputs: Inputs, values: torch.Tensor) -> torch.Tensor:
        """Features of the second pass, [batch, width]."""
        return self._reader[0](inputs.prompts, self.notes(inputs, values), inputs.responses)

    def score(self, features: torch.Tensor) -> torch.Tensor:
        """Scores from features of the second pass, [batch]."""
        raw = self.head((features - self.center) / self.deviation).squeeze(-1)
        return (raw - self.shift) * self.scale

    def forward(self, inputs: Inputs, values: torch.Tensor, explain: bool = True) -> Fused:
        score = self.score(self.read(inputs, values))
        attribution = torch.zeros_like(values)
        for place in range(len(self.specs) if explain else 0):
            without = values.clone()
            without[:, place] = torch.nan
            attribution[:, place] = score - self.score(self.read(inputs, without))
        return Fused(score, attribution)

    def _said(self, spec: BranchConfig, inputs: Inputs, row: int, value: float) -> str:
        if math.isnan(value):
            return ABSENT
        if spec.kind == "text" and spec.name in inputs.side_texts:
            return " ".join(inputs.side_texts[spec.name][row].split()[: self.limit])
        bounds = f" ({spec.low:g} to {spec.high:g})" if spec.low is not None and spec.high is not None else ""
        return f"{value:.2f}{bounds}"


def build(specs: Sequence[BranchConfig], config: FusionConfig, sizes: tuple[int, int], reader: Reader) -> Fusion:
    """The fusion that a config names.

    Args:
        sizes: dimensions of the gate's context and of the backbone's features.
        reader: the backbone's second pass, for the text fusion.
    """
    if config.kind == "text":
        return TextFusion(specs, config, sizes[1], reader)
    return AdditiveFusion(specs, config, sizes[0])
