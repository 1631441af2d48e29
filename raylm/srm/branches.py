"""Branches: each says one number about a prompt and a response, whatever it is made of."""

from __future__ import annotations

import importlib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from raylm.errors import UserError
from raylm.srm.backbone import Prompt, as_text
from raylm.srm.config import BranchConfig
from raylm.srm.tools import TOOLS, Tool

log = logging.getLogger(__name__)

ABSENT = "N/A"
"""How a text fusion reads a branch that says nothing."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch as branches and fusions see it."""

    prompts: Sequence[Prompt]
    responses: Sequence[str]
    features: torch.Tensor
    """[batch, width], of the backbone, standardised."""
    contexts: torch.Tensor
    """[batch, hidden], of the prompts alone, standardised."""
    side_texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What text branches wrote, by branch."""

    def take(self, row: int) -> Inputs:
        """One row."""
        here = slice(row, row + 1)
        texts = {name: said[here] for name, said in self.side_texts.items()}
        return Inputs(self.prompts[here], self.responses[here], self.features[here], self.contexts[here], texts)


class Branch(Protocol):
    """One dimension. A class of one's own needs no more than this."""

    name: str

    def values(self, inputs: Inputs) -> torch.Tensor:
        """[batch], in the dimension's own unit; NaN where the branch has nothing to say."""
        ...


class TrainedBranch(nn.Module):
    """A linear head on the shared features, or a bottleneck adapter before it.

    source: Houlsby et al. (2019), "Parameter-efficient transfer learning for NLP", for the form of the bottleneck.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: BranchConfig, width: int) -> None:
        """Put fresh weights on features of so many dimensions."""
        super().__init__()
        self.name = spec.name
        self.down = nn.Linear(width, spec.rank) if spec.kind == "adapter" else None
        self.up = nn.Linear(spec.rank, width) if spec.kind == "adapter" else None
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[batch], in standard deviations of the ratings it learns from."""
        if self.down is not None and self.up is not None:
            features = features + self.up(nn.functional.gelu(self.down(features)))
        return self.out(features).squeeze(-1)

    def values(self, inputs: Inputs) -> torch.Tensor:
        """[batch], in the unit of the ratings; of a branch that learned preferences, log-odds."""
        return self(inputs.features) * self.std + self.mean


class ToolBranch:
    """A function of prompt and response; texts for which it says None are absent."""

    def __init__(self, name: str, tool: Tool) -> None:
        self.name, self.tool = name, tool

    def values(self, inputs: Inputs) -> torch.Tensor:
        """[batch], in the tool's own unit."""
        said = (self.tool(as_text(prompt), text) for prompt, text in zip(inputs.prompts, inputs.responses, strict=True))
        found = [math.nan if value is None else float(value) for value in said]
        return torch.tensor(found, dtype=torch.float32, device=inputs.features.device)


class TextBranch:
    """The number that a generated side text states."""

    _NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

    def __init__(self, spec: BranchConfig) -> None:
        self.name, self.low, self.high = spec.name, spec.low, spec.high

    def values(self, inputs: Inputs) -> torch.Tensor:
        """[batch], in the unit of the ratings; absent where the text states no number in their range."""
        texts = inputs.side_texts.get(self.name) or [""] * len(inputs.responses)
        return torch.tensor([self.parse(text) for text in texts], device=inputs.features.device)

    def parse(self, text: str) -> float:
        """The first number of a text that lies in the range; NaN when there is none."""
        for match in self._NUMBER.finditer(text):
            value = float(match.group())
            if (self.low is None or value >= self.low) and (self.high is None or value <= self.high):
                return value
        return math.nan


def build(spec: BranchConfig, width: int, *, own_tools: bool) -> Branch:
    """The branch that a config describes.

    Args:
        width: of the backbone's features.
        own_tools: whether a tool named as `module:function` may be imported.

    Raises:
        UserError: there is no such tool, or it may not be imported.
    """
    if spec.trained:
        return TrainedBranch(spec, width)
    if spec.kind == "text":
        return TextBranch(spec)
    return ToolBranch(spec.name, _tool(spec, own_tools))


def evaluate(branches: Sequence[Branch], inputs: Inputs) -> tuple[torch.Tensor, list[dict[str, str]]]:
    """Values of all branches, [batch, branches], and what failed, by name, for every row.

    A branch that raises is asked row by row, so that one bad row costs no other its score; a value that is infinite or
    comes of features that are not numbers is a failure of its row.
    """
    failures: list[dict[str, str]] = [{} for _ in inputs.responses]
    columns = []
    for branch in branches:
        try:
            column = branch.values(inputs)
        except Exception:  # a branch of one's own may fail in any way; the others still score
            column = torch.cat([_alone(branch, inputs, row, failures[row]) for row in range(len(failures))])
        broken = torch.isinf(column)
        if isinstance(branch, TrainedBranch):
            broken = ~torch.isfinite(column)
        for row in broken.nonzero().flatten().tolist():
            failures[row].setdefault(branch.name, f"its value is {float(column[row])}")
        columns.append(torch.where(torch.isfinite(column), column, math.nan))
    return torch.stack(columns, 1), failures


def _alone(branch: Branch, inputs: Inputs, row: int, failures: dict[str, str]) -> torch.Tensor:
    try:
        return branch.values(inputs.take(row))
    except Exception as error:  # see `evaluate`
        log.warning("branch %s failed: %s: %s", branch.name, type(error).__name__, error)
        failures[branch.name] = f"{type(error).__name__}: {error}"
        return torch.full((1,), math.nan, device=inputs.features.device)


def _tool(spec: BranchConfig, own_tools: bool) -> Tool:
    name = spec.tool or spec.name
    if name == "retrieval":
        from raylm.srm.evidence import Evidence

        return Evidence(spec.index)
    module, _, attribute = name.partition(":")
    if not attribute:
        if name not in TOOLS:
            known = ", ".join([*TOOLS, "retrieval"])
            raise UserError(f"branch {spec.name}: no tool {name!r}; there are {known}, or name module:function")
        return TOOLS[name]
    if not own_tools:
        raise UserError(
            f"branch {spec.name}: its tool {name!r} is code that this model names; load the model with own_tools=True "
            "if you trust it"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"branch {spec.name}: tool {name!r} cannot be imported ({error})") from None
    return found() if isinstance(found, type) else found
