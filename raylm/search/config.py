"""Configs of tree search and of the explore stage."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from raylm.config import Config, runtime
from raylm.llm.config import ComputeConfig, EngineConfig, check_gpus
from raylm.tasks.config import PromptConfig, SourceConfig, VerifierConfig

StepMode = Literal["line", "sentence", "tokens", "pattern"]


class ValueConfig(Config):
    """What a finished response is worth: the weighted mean of the parts whose weight is above 0."""

    verifier: float = Field(1.0, ge=0)
    """Weight of the verifier: 1 for a correct answer, 0 for a wrong one; an unverifiable answer has no such part."""
    consistency: float = Field(0.0, ge=0)
    """Weight of self-consistency: the share of the tree's responses so far that give the same answer."""
    reward_model: float = Field(0.0, ge=0)
    """Weight of the reward model's score, in [0, 1]."""
    model: str = ""
    """The reward model: a directory with a structural reward model or a
    sequence classifier of one output, or the address (http:// or https://) of a
    served one."""

    @model_validator(mode="after")
    def _something_is_weighed(self) -> ValueConfig:
        if not self.verifier + self.consistency + self.reward_model:
            raise ValueError("all weights are 0; give verifier, consistency or reward_model one")
        if bool(self.reward_model) != bool(self.model):
            raise ValueError("reward_model (a weight above 0) and model (what scores) go together")
        return self


class SearchConfig(Config):
    """How one tree grows. Constants c 1.4 and depth 16 are those of CRPS's released code."""

    strategy: Literal["mcts", "beam", "best_of_n", "majority"] = "mcts"
    """Where samples are drawn and which response is picked: mcts samples below the most promising nodes; beam below the
    `beam` best steps of each depth; best_of_n and majority only below the question. majority picks the most frequent
    answer, the others the response of the highest value."""
    rounds: int = Field(6, ge=1)
    """Expansions of a tree; each selects a leaf, samples from it, and backs the rewards up."""
    parallel: int = Field(1, ge=1)
    """Expansions of one tree in flight at once, spread by virtual loss. A new one starts as soon as the oldest is
    backed up; there is no barrier between them, and yet the tree does not depend on timing."""
    samples: int = Field(4, ge=1)
    """Completions of an expansion."""
    beam: int = Field(4, ge=1)
    """Steps of one depth from which a beam goes on."""
    rule: Literal["uct", "puct"] = "uct"
    """Selection by mcts: uct, Q + c * sqrt(ln N_parent / N), or puct, Q + c * P * sqrt(N_parent) / (1 + N) with the
    policy's own probability P of a step."""
    c: float = Field(1.4, ge=0)
    """Exploration constant of the rule."""
    backup: Literal["mean", "max"] = "mean"
    """Q of a node: the mean or the highest reward below it."""
    value: ValueConfig = ValueConfig()
    """Where rewards come from."""
    max_depth: int = Field(16, ge=1)
    """Steps deeper than this are kept but not sampled from."""
    widen: float = Field(1.0, gt=0)
    """Progressive widening: a node may be sampled while its children are fewer than widen * N^widen_power, N counting
    the visit being made, or while nothing below it is left to explore."""
    widen_power: float = Field(0.5, ge=0, le=1)
    """Exponent of progressive widening."""
    patience: int = Field(4, ge=1)
    """mcts and beam do not sample a node again after this many completions in a row that only repeated known paths."""
    temperature: float = Field(0.8, gt=0)
    """Sampling temperature of the explorer; greedy samples would all be the same path."""
    temperature_end: float | None = Field(None, gt=0)
    """Temperature of the last expansion, reached in equal steps; None keeps it constant."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the explorer's sampling."""
    max_tokens: int = Field(128, ge=1)
    """Longest response, in tokens, from the question to the answer."""
    step: StepMode = "line"
    """Where a step ends: at a newline; at the end of a sentence or line; after step_tokens tokens; behind a match of
    step_pattern, for tasks with marks of their own."""
    step_tokens: int = Field(32, ge=1)
    """Length of a step when step is tokens."""
    step_pattern: str = ""
    """Regular expression that ends a step when step is pattern; the token in which a match ends is kept whole."""
    enough_good: int = Field(2, ge=0)
    """With enough_bad: a tree stops early once it has this many correct and wrong trajectories; 0 never stops. Without
    a weight for the verifier in `value` no rule looks at verdicts."""
    enough_bad: int = Field(2, ge=0)
    """See enough_good."""
    easy_rounds: int = Field(0, ge=0)
    """A tree in which every verdict is correct stops after this many expansions; 0 gives it all."""
    hard_rounds: int = Field(0, ge=0)
    """A tree without a correct verdict goes on to this many expansions; 0 gives it no more than the others."""
    token_budget: int = Field(0, ge=0)
    """Generated tokens after which a tree starts no further expansion; 0 is no limit."""
    node_budget: int = Field(0, ge=0)
    """Nodes after which a tree starts no further expansion; 0 is no limit."""
    seconds_budget: float = Field(0.0, ge=0)
    """Seconds after which a tree starts no further expansion; 0 is no limit. The only setting that makes results depend
    on speed."""

    @field_validator("step_pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _fits_together(self) -> SearchConfig:
        if (self.step == "pattern") != bool(self.step_pattern):
            raise ValueError("step: pattern and step_pattern go together")
        if self.hard_rounds and self.hard_rounds < self.rounds:
            raise ValueError(f"hard_rounds {self.hard_rounds} is below rounds {self.rounds}, which every tree may use")
        if self.easy_rounds > self.rounds:
            raise ValueError(f"easy_rounds {self.easy_rounds} is above rounds {self.rounds}")
        return self


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

    @model_validator(mode="after")
    def _gpus_suffice(self) -> ExploreConfig:
        check_gpus(self.engine, self.compute)
        return self
