"""Configs of tree search and of the explore stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raylm.config import Config, runtime
from raylm.llm.config import ComputeConfig, EngineConfig
from raylm.tasks.config import PromptConfig, SourceConfig, VerifierConfig


class SearchConfig(Config):
    """How one tree grows. Constants c 1.4 and depth 16 are those of CRPS's released code."""

    rounds: int = Field(6, ge=1)
    """Expansion rounds of a tree; each selects leaves, samples from them, and backs the rewards up."""
    leaves: int = Field(1, ge=1)
    """Leaves selected in a round; virtual loss spreads them."""
    samples: int = Field(4, ge=1)
    """Completions sampled from each selected leaf in a round."""
    c: float = Field(1.4, ge=0)
    """Exploration constant of UCT: Q + c * sqrt(ln N_parent / N)."""
    max_depth: int = Field(16, ge=1)
    """Steps deeper than this are kept but not sampled from."""
    widen: float = Field(1.0, gt=0)
    """Progressive widening: a node may be sampled while its children are fewer than widen * N^widen_power, N counting
    the visit being made, or while nothing below it is left to explore."""
    widen_power: float = Field(0.5, ge=0, le=1)
    """Exponent of progressive widening."""
    patience: int = Field(4, ge=1)
    """A node is not sampled again after this many completions in a row that only repeated known paths."""
    temperature: float = Field(0.8, gt=0)
    """Sampling temperature of the explorer; greedy samples would all be the same path."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the explorer's sampling."""
    max_tokens: int = Field(128, ge=1)
    """Longest response, in tokens, from the question to the answer."""
    step: Literal["line", "sentence"] = "line"
    """Where a step ends: at a newline, or at the end of a sentence."""
    enough_good: int = Field(2, ge=0)
    """With enough_bad: a tree stops early once it has this many correct and wrong trajectories; 0 never stops."""
    enough_bad: int = Field(2, ge=0)
    """See enough_good."""
    token_budget: int = Field(0, ge=0)
    """Generated tokens after which a tree starts no further round; 0 is no limit."""


class ExploreConfig(Config):
    """Search every problem's tree of reasoning steps."""

    out: str = runtime("runs/explore")
    """Directory of the artefact."""
    problems: tuple[SourceConfig, ...] = Field(..., min_length=1)
    """Sources of the problems to explore."""
    prompt: PromptConfig = PromptConfig()
    """How a question is asked."""
    engine: EngineConfig = EngineConfig()
    """The explorer."""
    search: SearchConfig = SearchConfig()
    """How a tree grows."""
    verifier: VerifierConfig = VerifierConfig()
    """How answers are checked."""
    compute: ComputeConfig = ComputeConfig()
    """Ray actors."""
    seed: int = 0
    """Seed of every random choice."""
    max_failed_share: float = runtime(0.0, ge=0, le=1)
    """Share of problems that may be set aside with an error before the stage fails."""
