"""Backbone, branches and fusion as one module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from raylm.srm import branches, fusion
from raylm.srm.backbone import Backbone, Pair, Prompt
from raylm.srm.branches import Branch, Inputs, TrainedBranch
from raylm.srm.cache import Count
from raylm.srm.config import BranchConfig, FusionConfig, WriterConfig
from raylm.srm.fusion import AdditiveFusion


@dataclass(frozen=True, slots=True)
class Said:
    """What a structure says of a batch."""

    score: torch.Tensor
    """[batch]."""
    attribution: torch.Tensor
    """[batch, branches]."""
    values: torch.Tensor
    """[batch, branches], NaN where a branch is absent."""
    failures: list[dict[str, str]]
    """Errors by branch, a row each."""


class Structure(nn.Module):
    """Everything that scores: one pass of the backbone, all branches on it, and their fusion."""

    center: torch.Tensor
    deviation: torch.Tensor
    context_center: torch.Tensor
    context_deviation: torch.Tensor

    def __init__(
        self, backbone: Backbone, specs: Sequence[BranchConfig], fusion_config: FusionConfig, *, own_tools: bool = False
    ) -> None:
        """Put fresh branches and a fresh fusion on a backbone.

        Args:
            own_tools: see `branches.build`.

        Raises:
            UserError: as `branches.build`.
        """
        super().__init__()
        self.backbone, self.specs, self.fusion_config = backbone, tuple(specs), fusion_config
        built = [branches.build(spec, backbone.width, own_tools=own_tools) for spec in specs]
        self.trained = nn.ModuleDict({branch.name: branch for branch in built if isinstance(branch, TrainedBranch)})
        self.others = {branch.name: branch for branch in built if not isinstance(branch, TrainedBranch)}
        self.fusion = fusion.build(specs, fusion_config, (backbone.hidden, backbone.width), self.reread)
        self.writer: Writer | None = None
        """Writes the side texts of text branches."""
        for name, size in (("", backbone.width), ("context_", backbone.hidden)):
            self.register_buffer(f"{name}center", torch.zeros(size))
            self.register_buffer(f"{name}deviation", torch.ones(size))

    def set_writer(self, config: WriterConfig) -> None:
        """Load what writes the side texts, where there are text branches.

        Raises:
            UserError: as `AdapterWriter`.
        """
        if any(spec.kind == "text" for spec in self.specs):
            from raylm.srm.sidetext import AdapterWriter

            self.writer = AdapterWriter(config, self.specs, str(self.backbone.device))

    @property
    def branches(self) -> list[Branch]:
        """In the order of the config."""
        return [self.trained[spec.name] if spec.trained else self.others[spec.name] for spec in self.specs]  # type: ignore[misc]

    @property
    def bias(self) -> float:
        """Score at the references; 0 for a fusion that has none."""
        return float(self.fusion.offset.detach()) if isinstance(self.fusion, AdditiveFusion) else 0.0

    def replaced(self, specs: dict[str, BranchConfig]) -> Structure:
        """The same structure in which some trained branches are fresh ones; all other weights are its own."""
        for name, spec in specs.items():
            device = self.backbone.device
            self.trained[name] = TrainedBranch(spec, self.backbone.width).to(device)
        self.specs = tuple(specs.get(spec.name, spec) for spec in self.specs)
        self.fusion.specs = self.specs
        return self

    def own_state(self) -> dict[str, torch.Tensor]:
        """All weights but the backbone's."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("backbone.")}

    def inputs(self, texts: Sequence[tuple[Prompt, str]], pairs: Sequence[Pair], left: bool = False) -> Inputs:
        """What branches and fusion see of texts whose ids are given; one padded pass of the backbone."""
        raw = self.backbone.features(self.backbone.batch(pairs, left))
        prompts, responses = [prompt for prompt, _ in texts], [response for _, response in texts]
        written = self.writer.write(self.specs, prompts, responses) if self.writer else {}
        return self.standardised(prompts, responses, raw, self.backbone.contexts(pairs), written)

    def standardised(
        self, prompts: Sequence[Prompt], responses: Sequence[str], raw: torch.Tensor, contexts: torch.Tensor,
        written: dict[str, list[str]] | None = None,
    ) -> Inputs:  # fmt: skip
        """Inputs from the backbone's features and contexts as they come out of it."""
        features = (raw - self.center) / self.deviation
        contexts = (contexts - self.context_center) / self.context_deviation
        return Inputs(prompts, responses, features, contexts, written or {})

    @torch.inference_mode()
    def score(
        self, texts: Sequence[tuple[Prompt, str]], pairs: Sequence[Pair], *, explain: bool = True, left: bool = False
    ) -> Said:
        """Scores of one batch."""
        inputs = self.inputs(texts, pairs, left)
        values, failures = branches.evaluate(self.branches, inputs)
        fused = self.fusion(inputs, values, explain)
        return Said(fused.score, fused.attribution, values, failures)

    def reread(self, prompts: Sequence[Prompt], notes: Sequence[str], responses: Sequence[str]) -> torch.Tensor:
        """The backbone's features of prompts with notes, for the text fusion."""
        rows = zip(prompts, responses, notes, strict=True)
        pairs = [self.backbone.tokenize(prompt, response, note) for prompt, response, note in rows]
        return self.backbone.features(self.backbone.batch(pairs))


class Writer(Protocol):
    """Writes side texts; see `raylm.srm.sidetext`."""

    def write(
        self,
        specs: Sequence[BranchConfig],
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        tell: Count | None = None,
    ) -> dict[str, list[str]]:
        """Side texts of all text branches, by branch; `tell` counts them."""
        ...
