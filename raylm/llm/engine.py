"""Choosing and starting an engine."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass

from raylm.errors import UserError
from raylm.llm import models
from raylm.llm.config import EngineConfig, EngineKind
from raylm.llm.protocol import Engine


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and why it was taken."""

    kind: EngineKind
    reason: str


def choose(config: EngineConfig, gpus: float = 0.0) -> Choice:
    """The engine that `config.kind` means here.

    With `auto`: vLLM on GPUs where it is installed. On CPUs the transformers engine, which starts in seconds where
    vLLM takes half a minute, and whose decoding of small models is as fast there (the engine benchmark has the ratio).
    """
    if config.kind != "auto":
        return Choice(config.kind, "the config names it")
    installed = importlib.util.find_spec("vllm") is not None
    if gpus and installed:
        return Choice("vllm", "it is installed and the actor has a GPU")
    if gpus:
        return Choice("transformers", "vllm is not installed (pip install 'raylm[gpu]' makes GPUs much faster)")
    return Choice("transformers", "without a GPU it starts sooner than vllm and decodes small models as fast")


async def build(config: EngineConfig, *, cpus: float = 1.0, gpus: float = 0.0) -> Engine:
    """Start the engine of a config, with its threads capped to `cpus`.

    Raises:
        UserError: the model cannot be had, its context is shorter than the config's, or the engine is not installed.
    """
    choice = choose(config, gpus)
    print(f"engine: {choice.kind} ({choice.reason})", file=sys.stderr, flush=True)
    directory = models.resolve(config.model, config.revision, config.trust_remote_code)
    engine = await _start(choice.kind, config, directory, max(1, int(cpus)))
    if config.request_log:
        from raylm.llm.logged import LoggedEngine

        return LoggedEngine(engine, config.request_log)
    return engine


async def _start(kind: EngineKind, config: EngineConfig, directory: models.ModelDir, threads: int) -> Engine:
    if kind == "scripted":
        from raylm.llm.scripted import ScriptedEngine

        return ScriptedEngine(config, models.load_tokenizer(directory.path, config.trust_remote_code))
    if kind == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise UserError("engine.kind=vllm: vllm is not installed; pip install 'raylm[gpu]' or 'raylm[cpu]'")
        from raylm.llm.vllm import VllmEngine

        return await VllmEngine.start(config, directory)
    from raylm.llm.transformers import TransformersEngine

    return TransformersEngine(config, directory, threads)
