"""Configs of the synthesize stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raylm.config import Config, runtime
from raylm.llm.config import ComputeConfig, EngineConfig, check_gpus
from raylm.tasks.config import PromptConfig, SourceConfig, VerifierConfig


class PairConfig(Config):
    """Which trajectories are contrasted. K = 10 and the hard ratio 0.7 are defaults of CRPS's released code."""

    max_pairs: int = Field(10, ge=1)
    """Pairs a problem, at most."""
    hard_ratio: float = Field(0.7, ge=0, le=1)
    """Share of max_pairs for pairs whose negative is wrong; the rest is for correct but longer paths. 1 and 0 leave one
    kind alone."""
    choose: Literal["visits", "longest_prefix", "random"] = "longest_prefix"
    """Hard pairs: the best path against wrong ones drawn in proportion to visits (released code), each wrong path
    against the correct one with which it shares the longest prefix, where they part being the true pivot (ours), or
    any correct against any wrong path (for comparison)."""
    anchor: Literal["fewest_steps", "best_value", "best_form"] = "fewest_steps"
    """Which correct path is the best one: the shortest (released code), the one with the highest mean value of its
    steps, or the one whose form wins most often against wrong paths of the same question, over all trees (ours)."""
    keep: float = Field(1.0, gt=0, le=1)
    """With anchor best_form, the share of solved problems that are kept, those whose anchors have the best form. Where
    all correct paths become chains (rejection), those with a worse form are left out as well."""

    @model_validator(mode="after")
    def _keep_needs_forms(self) -> PairConfig:
        if self.keep < 1 and self.anchor != "best_form":
            raise ValueError(f"keep {self.keep} ranks anchors by their form; set anchor: best_form, or keep: 1")
        return self


class FilterConfig(Config):
    """What a synthesised chain must pass."""

    min_steps: int = Field(1, ge=1)
    """Fewest steps (lines that are not empty) of a chain."""
    max_steps: int = Field(32, ge=1)
    """Most steps of a chain."""
    check_arithmetic: bool = True
    """Drop chains with an explicit `a op b = c` that does not hold."""
    dedup_jaccard: float = Field(0.8, gt=0, le=1)
    """Share of common word triples above which two chains of one question are the same."""
    max_per_problem: int = Field(4, ge=1)
    """Chains of one question, at most."""
    ngram: int = Field(13, ge=1)
    """Length of the word n-grams of decontamination."""

    reward_model: str = runtime("")
    """Directory of a structural reward model whose score a chain must reach; empty asks none."""
    min_reward: float = Field(0.5, ge=0, le=1)
    """Least probability, by the reward model, that the chain is better than an average response."""

    @model_validator(mode="after")
    def _ordered(self) -> FilterConfig:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps {self.min_steps} is above max_steps {self.max_steps}: no chain could pass")
        return self


class LlmConfig(Config):
    """The language model of an analyst or a synthesizer that is one."""

    engine: EngineConfig = EngineConfig()
    """Which model, and on what."""
    compute: ComputeConfig = ComputeConfig(in_flight=8)
    """The Ray actors that hold it."""
    temperature: float = Field(0.7, ge=0)
    """Sampling temperature; every pair has a seed of its own, since at temperature 0 like pairs make like chains."""
    critique_tokens: int = Field(512, ge=1)
    """Longest critique, in tokens."""
    chain_tokens: int = Field(256, ge=1)
    """Longest chain, in tokens."""
    retries: int = Field(2, ge=0)
    """Further answers that an analyst may give when one is not valid."""
    evidence: bool = True
    """Show the analyst what the tree itself proves: where paths part, and which sums do not hold."""
    style: str = ""
    """A worked chain whose form the synthesizer follows; empty takes the first example of the prompt."""
    variants: int = Field(1, ge=1)
    """Chains that method solve writes of a problem."""


class SynthesizeConfig(Config):
    """Write training chains from trees."""

    trees: str = runtime("runs/explore")
    """Artefact of the explore stage."""
    out: str = runtime("runs/synthesize")
    """Directory of the artefact."""
    method: Literal["crps", "best_path", "rejection", "good_only", "shuffled", "solve", "correction"] = "crps"
    """crps contrasts paths. The others are what it is compared with: best_path keeps each tree's best path; rejection
    every distinct correct path; good_only reflects on the best path alone; shuffled uses another problem's critique;
    solve lets the synthesizer write from the problem alone; correction asks for the mistake in a wrong path and its
    correction (LEMA)."""
    analyst: Literal["structural", "llm"] = "structural"
    """Who finds pivots and failure modes: structural reads them off the tree, llm asks a language model."""
    synthesizer: Literal["structural", "llm"] = "structural"
    """Who writes the chain: structural grafts the best continuation onto the shared prefix, llm asks a language model,
    which sees neither path nor answer."""
    llm: LlmConfig = LlmConfig()
    """The model of what is llm above."""
    pitfall: Literal["none", "check", "full"] = "check"
    """What a chain adds where its pair parts: nothing; a check by the inverse operation (12 - 5 = 7, since 7 + 5 = 12);
    or also the mistake that it avoids (not 8). Short and regular text suits small models."""
    without_pair: Literal["best_path", "skip"] = "best_path"
    """What becomes of a problem with correct paths and nothing to contrast them with: its best path, or nothing."""
    correction_prompt: str = "Find the first mistake in this solution and correct it:"
    """What method correction puts between a question and a wrong solution."""
    prompt: PromptConfig = PromptConfig()
    """The chat that a chain's question is put in; must be the one that the tuned model will be asked with."""
    pairs: PairConfig = PairConfig()
    """Which trajectories are contrasted."""
    filters: FilterConfig = FilterConfig()
    """What a chain must pass."""
    evaluation: tuple[SourceConfig, ...] = ()
    """Evaluation problems: chains that share an n-gram with them are dropped, equal questions are refused. Without any,
    nothing is decontaminated."""
    verifier: VerifierConfig = VerifierConfig()
    """How synthesised answers are checked."""
    seed: int = 0
    """Seed of the sampling of pairs."""
    parallelism: int = runtime(2, ge=1)
    """Actors that write and verify chains where no language model does; llm.compute says how many where one does."""

    @property
    def uses_llm(self) -> bool:
        """Whether a language model is asked."""
        return self.method == "solve" or (
            self.method in ("crps", "shuffled", "good_only", "correction") and "llm" in (self.analyst, self.synthesizer)
        )

    @model_validator(mode="after")
    def _fits_together(self) -> SynthesizeConfig:
        if self.method == "solve" and self.synthesizer != "llm":
            raise ValueError("method solve needs synthesizer: llm, for only a language model can write from a problem")
        check_gpus(self.llm.engine, self.llm.compute)
        return self
