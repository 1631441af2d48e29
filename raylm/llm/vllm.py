"""vLLM 0.32 behind the engine protocol: its AsyncLLM with prefix caching, on GPUs or a CPU."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import re
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylm.errors import EngineDied
from raylm.llm import models, stops
from raylm.llm.config import EngineConfig
from raylm.llm.meter import Meter
from raylm.llm.models import ModelDir
from raylm.llm.protocol import Completion, EngineStats, Generation, Sampling
from raylm.llm.request import prepare

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm import CompletionOutput, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

_BLOCK = {"cpu": 32, "cuda": 16}
"""Tokens of a cache block. vLLM's own choice for CPUs is longer than a short prompt, so nothing would be reused."""
_FAULT = re.compile(r"\b([A-Za-z_.]*(?:Error|Exception|Interrupt)): (.+)$", re.MULTILINE)


class VllmEngine:
    """One vLLM engine, whose core runs in a process of its own."""

    name = "vllm"
    guided = True

    def __init__(
        self, llm: AsyncLLM, tokenizer: PreTrainedTokenizerBase, config: EngineConfig, where: ModelDir, *, log: Path
    ) -> None:
        """Wrap a started engine; use `start`, which starts one."""
        self.model, self.tokenizer, self.context_length = where.ref, tokenizer, config.context
        self.llm: AsyncLLM | None = llm
        self._log = log
        self._names = itertools.count()
        self._vocabulary = int(llm.model_config.get_vocab_size())
        given = llm.model_config.try_get_generation_config().get("eos_token_id")
        listed = given if isinstance(given, list) else [given]
        self._ends = sorted({token for token in [*listed, tokenizer.eos_token_id] if token is not None})
        self._cores = _core_processes(llm)
        self._meter = Meter()

    @classmethod
    async def start(cls, config: EngineConfig, model: ModelDir, *, gpus: float = 0.0) -> VllmEngine:
        """Start vLLM; on a CPU this takes half a minute.

        Raises:
            EngineDied: it did not start; the message names the cause.
        """
        device = "cuda" if gpus > 0 else "cpu"
        log = _prepare_environment(config, device)
        try:
            # Not in a thread: the engine's sockets belong to the event loop that creates them.
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**_arguments(config, model, device)))
        except Exception as error:
            cause = _last_fault(log) or f"{type(error).__name__}: {' '.join(str(error).split())}"
            log.unlink(missing_ok=True)
            raise EngineDied(f"vLLM did not start for {model.ref.name}: {cause}") from error
        finally:
            Path(os.environ.pop("VLLM_LOGGING_CONFIG_PATH")).unlink()
        return cls(llm, models.load_tokenizer(model.path, config.trust_remote_code), config, model, log=log)

    async def generate(self, prompt: str | Sequence[int], sampling: Sampling) -> Generation:
        """Continue a prompt; see `Engine.generate`."""
        ids, room = prepare(prompt, sampling, self.tokenizer, self._vocabulary, self.context_length)
        if self.llm is None:
            raise EngineDied("the vLLM engine was closed")
        from vllm.inputs import tokens_input

        final = None
        with self._meter.request():
            try:
                outputs = self.llm.generate(
                    tokens_input(ids), self._params(sampling, room), f"raylm-{next(self._names)}"
                )
                async for output in outputs:
                    final = output
            except asyncio.CancelledError:
                raise  # vLLM aborts the request on its way out
            except Exception as error:
                raise EngineDied(f"the vLLM engine stopped: {self._cause(error)}") from error
        if final is None or len(final.outputs) != sampling.n or any(o.finish_reason == "abort" for o in final.outputs):
            raise EngineDied("the vLLM engine stopped: it was closed while a request was running")
        ordered = sorted(final.outputs, key=lambda output: output.index)
        completions = [self._completion(output, sampling) for output in ordered]
        generation = Generation(len(ids), final.num_cached_tokens or 0, completions)
        self._meter.add(generation)
        return generation

    def stats(self) -> EngineStats:
        """Totals since the start."""
        return self._meter.stats()

    async def close(self) -> None:
        """End the core's process."""
        llm, self.llm = self.llm, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown)
            self._log.unlink(missing_ok=True)

    def _params(self, sampling: Sampling, room: int) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        # vLLM seeds sample i with seed + i, so seeds must be far apart or neighbours would share samples.
        digest = hashlib.sha256(str(sampling.seed).encode()).digest()
        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=room,
            stop=list(sampling.stop),
            stop_token_ids=self._ends,
            seed=int.from_bytes(digest[:6], "big"),
            logprobs=0 if sampling.logprobs else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(json=sampling.schema_json) if sampling.schema_json else None,
        )

    def _completion(self, output: CompletionOutput, sampling: Sampling) -> Completion:
        tokens = list(output.token_ids)
        if tokens and tokens[-1] in self._ends:
            tokens.pop()
        text, ids, stopped = stops.cut(self.tokenizer, tokens, sampling.stop)
        logprobs = None
        if sampling.logprobs:
            assert output.logprobs is not None
            logprobs = [output.logprobs[place][token].logprob for place, token in enumerate(ids)]
        finish = "length" if output.finish_reason == "length" and stopped is None else "stop"
        return Completion(text, ids, finish, logprobs, stopped)  # type: ignore[arg-type]

    def _cause(self, error: Exception) -> str:
        """Why the core died: a signal, the error that it logged, or what vLLM says."""
        for process in self._cores:
            process.join(timeout=5)
            code = process.exitcode
            if code is not None and code < 0:
                more = " (often the kernel, out of memory)" if code == -signal.SIGKILL else ""
                return f"its core process {process.pid} was killed by {signal.Signals(-code).name}{more}"
        return _last_fault(self._log) or f"{type(error).__name__}: {error}"


def _prepare_environment(config: EngineConfig, device: str) -> Path:
    """Set what vLLM reads from the environment, before it is imported; returns the file that its errors go to."""
    handle, name = tempfile.mkstemp(prefix="raylm-vllm-", suffix=".log")
    os.close(handle)
    handler = {"class": "logging.FileHandler", "filename": name, "level": "ERROR", "formatter": "plain"}
    shown = {"class": "logging.StreamHandler", "level": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING")}
    logging = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(message)s"}},
        "handlers": {"file": handler, "shown": shown},
        "loggers": {"vllm": {"handlers": ["file", "shown"], "level": "INFO", "propagate": False}},
    }
    settings = Path(name + ".json")
    settings.write_text(json.dumps(logging), encoding="utf-8")
    os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(settings)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # a fork would copy the locks of this process's threads
    if device == "cpu":
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(config.kv_cache_gib)))
    return Path(name)


def _arguments(config: EngineConfig, model: ModelDir, device: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": str(model.path),
        "dtype": models.dtype_name(config.dtype, device),
        "max_model_len": config.context,
        "max_num_seqs": config.max_in_flight,
        "trust_remote_code": config.trust_remote_code,
        "enable_prefix_caching": True,
        "block_size": _BLOCK[device],
        "generation_config": "auto",
        "disable_log_stats": True,
    }
    if device == "cpu":
        return {**arguments, "enforce_eager": True}
    executor = {"distributed_executor_backend": "mp"} if config.tensor_parallel > 1 else {}
    return {
        **arguments,
        **executor,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "tensor_parallel_size": config.tensor_parallel,
    }


def _core_processes(llm: AsyncLLM) -> list[Any]:
    resources = getattr(llm.engine_core, "resources", None)
    return list(getattr(getattr(resources, "engine_manager", None), "processes", None) or [])


def _last_fault(log: Path) -> str:
    """The last error in vLLM's log, empty when it logged none."""
    if not log.is_file():
        return ""
    found = [": ".join(match) for match in _FAULT.findall(log.read_text(encoding="utf-8", errors="replace"))]
    telling = [text for text in found if not text.startswith(("EngineDeadError", "RuntimeError: Engine core"))]
    return (telling or found or [""])[-1]
