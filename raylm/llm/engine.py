"""Which engine answers, and starting it."""

from __future__ import annotations

import importlib.util
import logging
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from raylm.errors import UserError
from raylm.llm import models
from raylm.llm.config import EngineConfig

if TYPE_CHECKING:
    from raylm.llm.models import ModelDir
    from raylm.llm.protocol import Engine

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and why this one."""

    kind: Literal["vllm", "transformers", "scripted"]
    reason: str


def choose(config: EngineConfig, cpus: float, gpus: float) -> Choice:
    """Pick the engine for `kind: auto`; a named kind is taken as it is.

    Args:
        config: the engine's config.
        cpus: CPU cores of the process that will hold it.
        gpus: GPUs of that process.

    Raises:
        UserError: vLLM was asked for and is not usable here.
    """
    if config.kind == "scripted":
        return Choice("scripted", "asked for")
    if config.kind == "transformers":
        return Choice("transformers", "asked for")
    hindrance = vllm_hindrance()
    if config.kind == "vllm":
        if hindrance:
            raise UserError(f"engine.kind=vllm cannot run here: {hindrance}; or set engine.kind=transformers")
        return Choice("vllm", "asked for")
    if gpus > 0:
        if hindrance:
            return Choice("transformers", f"there is a GPU, but {hindrance}")
        return Choice("vllm", "there is a GPU")
    return Choice("transformers", "there is no GPU")


def vllm_hindrance() -> str:
    """Why vLLM cannot be used in this environment, empty when it can; imports nothing heavy."""
    if importlib.util.find_spec("vllm") is None:
        return "vllm is not installed (pip install 'raylm[gpu]', or 'raylm[cpu]' without a GPU)"
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except Exception as error:  # a torchvision built for another torch fails in many ways
            return f"torchvision does not match torch ({' '.join(str(error).split())[:80]}); pip uninstall torchvision"
    if platform.system() != "Linux":
        return "vllm runs on Linux only"
    return ""


async def build(config: EngineConfig, *, cpus: float = 1.0, gpus: float = 0.0) -> Engine:
    """Find the model, choose an engine and start it; the log says which one and why.

    Args:
        config: which model and engine.
        cpus: CPU cores it may use; its thread pools are capped to them.
        gpus: GPUs it may use.

    Raises:
        UserError: the model cannot be had, or its positions are fewer than `config.context`.
        EngineDied: the engine did not start; the message names the cause.
    """
    choice = choose(config, cpus, gpus)
    model = models.resolve(config.model, config.revision, config.trust_remote_code)
    check_context(config, model)
    log.info("engine %s for %s: %s", choice.kind, model.ref.name, choice.reason)
    print(f"engine: {choice.kind} for {model.ref.name} ({choice.reason})", file=sys.stderr, flush=True)
    engine = await _start(choice, config, model, cpus, gpus)
    if not config.request_log:
        return engine
    from raylm.llm.logged import LoggedEngine

    return LoggedEngine(engine, config.request_log)


def check_context(config: EngineConfig, model: ModelDir) -> None:
    """Refuse a context that is longer than the positions the model was made for.

    Raises:
        UserError: it is.
    """
    settings: dict[str, Any] = models.read_json(model.path / "config.json")
    positions = settings.get("max_position_embeddings") or settings.get("text_config", {}).get(
        "max_position_embeddings"
    )
    if positions and config.context > positions:
        raise UserError(
            f"engine.context={config.context} is more than the {positions} positions of {model.ref.name}; lower it"
        )


async def _start(choice: Choice, config: EngineConfig, model: ModelDir, cpus: float, gpus: float) -> Engine:
    if choice.kind == "scripted":
        from raylm.llm.scripted import ScriptedEngine

        return ScriptedEngine(config, models.load_tokenizer(model.path, config.trust_remote_code))
    if choice.kind == "vllm":
        from raylm.llm.vllm import VllmEngine

        return await VllmEngine.start(config, model, gpus=gpus)
    from raylm.llm.transformers import TransformersEngine

    return await TransformersEngine.start(config, model, threads=max(1, int(cpus)), gpus=gpus)
