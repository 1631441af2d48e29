"""Configs of generation engines and of the Ray actors that hold them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raylm.config import Config, runtime

EngineKind = Literal["auto", "vllm", "transformers", "scripted"]


class ScriptConfig(Config):
    """The scripted engine: a deterministic stand-in for a policy on arithmetic chains, for tests and dry runs."""

    accuracy: float = Field(0.6, ge=0, le=1)
    """Chance that a single step of a sampled chain is right; greedy decoding uses the same draw for sample 0."""
    latency: float = runtime(0.0, ge=0)
    """Seconds that each request waits before it is answered."""
    fail_after: int = runtime(0, ge=0)
    """Die after this many requests; 0 never. For fault tests."""


class EngineConfig(Config):
    """Which model answers, and on what."""

    kind: EngineKind = "auto"
    """Engine: vllm, transformers, scripted, or auto (the fastest that is installed; the log says which and why)."""
    model: str = "smollm2-135m-instruct"
    """A model directory, a name that a Python package carries (smollm2-135m-instruct), micro, or a hub id."""
    revision: str | None = None
    """Commit of a hub model; None takes its main branch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision; auto is bfloat16 on GPUs and what measured fastest on CPUs."""
    context: int = Field(1024, ge=16)
    """Longest prompt plus completion, in tokens."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave off unless you read that code."""
    script: ScriptConfig = ScriptConfig()
    """Settings of the scripted engine; the others ignore them."""
    request_log: str = runtime("")
    """File to which every request is appended as a JSON line, prompt included; empty logs none."""
    max_in_flight: int = runtime(64, ge=1)
    """Sequences decoded at the same time in one engine."""
    kv_cache_gib: float = runtime(2.0, gt=0)
    """Memory for keys and values, in GiB (CPU engines)."""
    gpu_memory_utilization: float = runtime(0.9, gt=0, le=1)
    """Share of a GPU's memory that vLLM may take."""
    tensor_parallel: int = runtime(1, ge=1)
    """GPUs that share one engine."""


class ComputeConfig(Config):
    """The Ray actors of a stage. None of it changes results."""

    min_workers: int = runtime(1, ge=1)
    """Actors that always run."""
    max_workers: int = runtime(1, ge=1)
    """Actors that autoscaling may reach."""
    cpus: float = runtime(2.0, ge=0)
    """CPU cores of one actor; its thread pools are capped to it."""
    gpus: float = runtime(0.0, ge=0)
    """GPUs of one actor; fractions share a card, and engine.tensor_parallel needs as many."""
    accelerator_type: str = runtime("")
    """Kind of accelerator that an actor must have, as Ray names it (A100, H100, L4); empty takes any."""
    resources: dict[str, float] = runtime(default_factory=dict)
    """Custom Ray resources of one actor, to choose among nodes that differ."""
    in_flight: int = runtime(16, ge=1)
    """Units of work (trees, questions) at once on one actor."""
    max_attempts: int = runtime(3, ge=1)
    """Tries of one unit before it is set aside with its error. A unit that was in flight when its engine or process
    died twice runs alone, and is set aside when that dies once more."""


def check_gpus(engine: EngineConfig, compute: ComputeConfig) -> None:
    """Refuse actors with fewer GPUs than their engine spreads over.

    Raises:
        ValueError: they have.
    """
    if engine.tensor_parallel > 1 and compute.gpus != engine.tensor_parallel:
        raise ValueError(
            f"engine.tensor_parallel={engine.tensor_parallel} needs compute.gpus={engine.tensor_parallel}, "
            f"got {compute.gpus:g}"
        )
