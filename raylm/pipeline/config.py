"""Config of the pipeline: what the stages share, and each stage's own section."""

from __future__ import annotations

from pydantic import Field, model_validator

from raylm.config import Config, identity, runtime
from raylm.crps.config import LlmConfig, SynthesizeConfig
from raylm.evaluation.config import EvaluateConfig
from raylm.llm.config import ComputeConfig, EngineConfig, check_gpus
from raylm.search.config import ExploreConfig
from raylm.tasks.config import PromptConfig, SourceConfig, VerifierConfig
from raylm.train.config import FinetuneConfig

WIRED = {
    "explore": ("out", "engine", "verifier", "seed"),
    "synthesize": ("trees", "out", "prompt", "evaluation", "verifier", "seed"),
    "finetune": ("chains", "out", "model", "revision", "trust_remote_code", "seed"),
    "evaluate": ("out", "model", "suites", "prompt", "engine", "verifier", "seed", "baseline"),
}
"""Fields of a stage that the pipeline sets; they may not be given in the stage's section."""


class PipelineConfig(Config):
    """Evaluate, explore, synthesize, finetune and evaluate again, as one resumable job."""

    out: str = runtime("runs/pipeline")
    """Directory of all artefacts; each stage has a sub-directory."""
    engine: EngineConfig = EngineConfig()
    """Model and engine of the search and of both evaluations; the model is also where fine-tuning starts."""
    explorer: EngineConfig | None = None
    """Another model or engine for the search, for instance a stronger explorer; None searches with `engine`."""
    prompt: PromptConfig = PromptConfig()
    """How a question is asked in training and in evaluation."""
    suites: dict[str, tuple[SourceConfig, ...]] = Field(..., min_length=1)
    """Evaluation problems by suite, for instance in_domain and out_of_domain. No training chain may overlap them."""
    explore: ExploreConfig
    """Search; its prompt may hold worked examples. Engine, verifier and seed come from the pipeline."""
    synthesize: SynthesizeConfig = SynthesizeConfig()
    """Synthesis. Paths, prompt, verifier and seed come from the pipeline; a language model that analyses or writes is
    that of the search unless `llm` names another."""
    finetune: FinetuneConfig = FinetuneConfig()
    """Training. Paths, model and seed come from the pipeline."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation. Paths, model, suites, prompt, engine, verifier and seed come from the pipeline."""
    compare_prompted: bool = True
    """Also evaluate the untouched model with the search's prompt, so that a gain which is only the format shows."""
    verifier: VerifierConfig = VerifierConfig()
    """How answers are checked."""
    compute: ComputeConfig = ComputeConfig()
    """Ray actors of the search and the evaluations; a `compute` of their own sections wins."""
    seed: int = 0
    """Seed of every stage."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_wired(cls, data: object) -> object:
        if isinstance(data, dict):
            for section, names in WIRED.items():
                given = data.get(section)
                for name in names:
                    if isinstance(given, dict) and name in given:
                        raise ValueError(f"{section}.{name} is set by the pipeline; remove it")
        return data

    @model_validator(mode="after")
    def _gpus_suffice(self) -> PipelineConfig:
        check_gpus(self.engine, self._compute(self.evaluate))
        check_gpus(self.explorer or self.engine, self._compute(self.explore))
        return self

    def stage_configs(self) -> dict[str, Config]:
        """The config of every stage in the order they run, by the name of its sub-directory."""
        shared = {"verifier": self.verifier, "seed": self.seed}
        generation = {**shared, "engine": self.engine}
        evaluation = tuple(source for sources in self.suites.values() for source in sources)
        before = self.evaluate.model_copy(
            update={
                **generation,
                "compute": self._compute(self.evaluate),
                "out": f"{self.out}/evaluate_before",
                "model": self.engine.model,
                "suites": self.suites,
                "prompt": self.prompt,
            }
        )
        stages: dict[str, Config] = {"evaluate_before": before}
        if self.compare_prompted and identity(self.explore.prompt) != identity(self.prompt):
            stages["evaluate_prompted"] = before.model_copy(
                update={"out": f"{self.out}/evaluate_prompted", "prompt": self.explore.prompt}
            )
        stages["explore"] = self.explore.model_copy(
            update={
                **generation,
                "engine": self.explorer or self.engine,
                "compute": self._compute(self.explore),
                "out": f"{self.out}/explore",
            }
        )
        stages["synthesize"] = self.synthesize.model_copy(
            update={
                **shared,
                "trees": f"{self.out}/explore",
                "out": f"{self.out}/synthesize",
                "prompt": self.prompt,
                "evaluation": evaluation,
                "llm": self._writer(),
            }
        )
        stages["finetune"] = self.finetune.model_copy(
            update={
                "chains": f"{self.out}/synthesize",
                "out": f"{self.out}/finetune",
                "model": self.engine.model,
                "revision": self.engine.revision,
                "trust_remote_code": self.engine.trust_remote_code,
                "seed": self.seed,
            }
        )
        stages["evaluate_after"] = before.model_copy(
            update={
                "out": f"{self.out}/evaluate_after",
                "model": f"{self.out}/finetune/model",
                "baseline": f"{self.out}/evaluate_before",
            }
        )
        return stages

    def _writer(self) -> LlmConfig:
        """The model that analyses and writes, where one does: that of the search unless the section names another."""
        llm = self.synthesize.llm
        if not self.synthesize.uses_llm:
            return llm
        found = {"engine": self.explorer or self.engine, "compute": self.compute}
        return llm.model_copy(update={name: value for name, value in found.items() if name not in llm.model_fields_set})

    def _compute(self, section: ExploreConfig | EvaluateConfig) -> ComputeConfig:
        return section.compute if "compute" in section.model_fields_set else self.compute
