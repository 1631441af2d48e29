"""Config of the evaluate stage."""

from __future__ import annotations

from pydantic import Field, model_validator

from raylm.config import Config, runtime
from raylm.llm.config import ComputeConfig, EngineConfig, check_gpus
from raylm.tasks.config import PromptConfig, SourceConfig, VerifierConfig


class EvaluateConfig(Config):
    """Score a model on suites of problems."""

    out: str = runtime("runs/evaluate")
    """Directory of the artefact."""
    model: str = runtime("")
    """Model directory or name, as in engine.model; empty takes engine.model. What counts is its content."""
    suites: dict[str, tuple[SourceConfig, ...]] = Field(default_factory=dict)
    """Sources of the problems by the name of their suite, for instance in_domain and out_of_domain."""
    prompt: PromptConfig = PromptConfig()
    """How a question is asked; a tuned model wants the prompt that it was tuned with."""
    engine: EngineConfig = EngineConfig()
    """The engine that answers."""
    max_tokens: int = Field(256, ge=1)
    """Longest response, in tokens. Responses that reach it are counted as unfinished."""
    samples: int = Field(1, ge=1)
    """Responses to each question. The first is greedy and decides accuracy; the others make pass@k and maj@k."""
    temperature: float = Field(0.7, gt=0)
    """Sampling temperature of every response but the first."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of every response but the first."""
    verifier: VerifierConfig = VerifierConfig()
    """How answers are checked."""
    compute: ComputeConfig = ComputeConfig()
    """Ray actors."""
    baseline: str = runtime("")
    """Artefact of another evaluation of the same questions, to compare with question by question."""
    resamples: int = Field(10_000, ge=100)
    """Bootstrap resamples behind the interval of a paired difference."""
    seed: int = 0
    """Seed of sampling and of the bootstrap."""
    max_failed_share: float = runtime(0.0, ge=0, le=1)
    """Share of questions that may be set aside with an error before the stage fails."""

    @model_validator(mode="after")
    def _gpus_suffice(self) -> EvaluateConfig:
        check_gpus(self.engine, self.compute)
        return self

    @model_validator(mode="after")
    def _suites_have_sources(self) -> EvaluateConfig:
        for name, sources in self.suites.items():
            if not name or not sources:
                raise ValueError(f"suites.{name or '(no name)'} has no sources")
        return self

    def resolved_engine(self) -> EngineConfig:
        """The engine with this evaluation's model."""
        return self.engine.model_copy(update={"model": self.model}) if self.model else self.engine
