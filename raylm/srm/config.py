"""Configs of the reward model: branches, fusion, training, scoring and diagnosis."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raylm.config import Config, runtime


class BranchConfig(Config):
    """One dimension of the score."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """How it is called in scores and reports."""
    kind: Literal["head", "adapter", "tool", "text"] = "head"
    """head: linear on the backbone's features; adapter: a bottleneck before it; tool: a function of prompt and
    response; text: a language model writes a side text whose number counts."""
    column: str = ""
    """Head, adapter, text: rating that it learns, a key of `scores` in the rating rows. Empty: it learns the
    preferences themselves (head and adapter)."""
    low: float | None = None
    """Least rating; ratings below it are refused. Empty takes the least that occurs."""
    high: float | None = None
    """Greatest rating; ratings above it are refused. Empty takes the greatest that occurs."""
    rank: int = Field(32, ge=1)
    """Adapter: units of the bottleneck."""
    tool: str = ""
    """Tool: one of those built in, or `module:function` with a function of prompt and response that returns a number
    or None. Empty takes the one with the branch's name."""
    index: str = runtime("")
    """Tool `retrieval`: directory of the index that holds the evidence."""
    adapter: str = runtime("")
    """Text: directory of a LoRA adapter for the writer; empty writes with the plain model."""
    positive: bool | None = None
    """Whether more of it can only raise the score. Empty: yes for heads, adapters and texts, free for tools."""

    @model_validator(mode="after")
    def _fits(self) -> BranchConfig:
        if self.kind == "text" and not self.column:
            raise ValueError(f"branch {self.name}: a text branch needs column, the rating that its text states")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"branch {self.name}: low={self.low} is not below high={self.high}")
        return self

    @property
    def rises(self) -> bool:
        """Whether its weight is kept positive."""
        return self.kind != "tool" if self.positive is None else self.positive

    @property
    def trained(self) -> bool:
        """Whether it has weights of its own on the backbone."""
        return self.kind in ("head", "adapter")


DEFAULT_BRANCHES = (
    BranchConfig(name="relevance", kind="tool"),
    BranchConfig(name="coverage", kind="tool"),
    BranchConfig(name="support", kind="tool"),
    BranchConfig(name="style", kind="tool"),
    BranchConfig(name="quality", kind="head"),
)
"""Dimensions that need no ratings: four tools, and a head that learns the preferences."""


class FusionConfig(Config):
    """How branches become one score."""

    kind: Literal["additive", "text"] = "additive"
    """additive: a sum of branches, weighed by the prompt, of which every part is the branch's exact share; text: a
    scalar head reads prompt, branches' texts and response in a second pass."""
    gate: Literal["prompt", "constant"] = "prompt"
    """Additive: whether weights depend on the prompt."""
    gate_rank: int = Field(8, ge=1)
    """Additive: directions of the prompt that weights depend on."""
    dropout: float = Field(0.15, ge=0, lt=1)
    """Chance that a branch is left out in training, so that scores without it are sound."""
    branch_tokens: int = Field(96, ge=4)
    """Text: tokens of a branch's text at most."""
