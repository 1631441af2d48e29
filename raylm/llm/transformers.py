"""Any causal language model of transformers, with continuous batching and a prefix cache; the engine for CPUs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from raylm.errors import EngineDied, UserError
from raylm.llm import kv_slots, models
from raylm.llm.batcher import Batcher, Request
from raylm.llm.config import EngineConfig
from raylm.llm.kv_slots import KvSlots, Segment, Shape, Step
from raylm.llm.meter import Meter
from raylm.llm.models import ModelDir
from raylm.llm.prefix_cache import PrefixCache
from raylm.llm.protocol import EngineStats, Generation, Sampling
from raylm.llm.request import prepare

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_RUNNING_SHARE = 2 / 3
"""Share of `kv_cache_gib` for running sequences; the prefix cache has the rest."""
_TOLERANCE = 0.05
"""Greatest difference of log-probabilities between the engine's attention and the model's own, in nats."""


class TransformersEngine:
    """Runs the model's own code, with our attention in place of its own."""

    name = "transformers"
    guided = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: EngineConfig,
        where: ModelDir,
        threads: int,
    ) -> None:
        """Wrap a loaded model; use `start`, which loads one.

        Raises:
            UserError: the model's attention is of a kind that the engine cannot take over, or `kv_cache_gib` is too
                small for one sequence.
        """
        self.model, self.tokenizer, self.context_length = where.ref, tokenizer, config.context
        self.module: PreTrainedModel | None = model
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        shape = _shape(model)
        tokens = int(config.kv_cache_gib * 2**30 / shape.bytes_per_token)
        kv = KvSlots(shape, config.max_in_flight, int(tokens * _RUNNING_SHARE))
        if kv.rows(kv_slots.width(config.context)) < 1:
            needed = kv_slots.width(config.context) * shape.bytes_per_token / _RUNNING_SHARE / 2**30
            raise UserError(
                f"engine.kv_cache_gib={config.kv_cache_gib} cannot hold one sequence of engine.context={config.context}"
                f" tokens of {where.ref.name}; it needs {needed:.2f}"
            )
        _take_over(model, shape, where)
        self._meter = Meter()
        self._meter.note("dtype", str(shape.dtype).removeprefix("torch."))
        self._meter.note("threads", str(threads))
        self._batcher = Batcher(
            self._forward,
            kv,
            PrefixCache(tokens - kv.max_tokens),
            tokenizer,
            ends=_ends(model, tokenizer),
            threads=threads,
        )

    @classmethod
    async def start(
        cls, config: EngineConfig, model: ModelDir, *, threads: int = 1, gpus: float = 0.0
    ) -> TransformersEngine:
        """Load a model.

        Args:
            config: context, precision, memory and rows.
            model: where it lies.
            threads: CPU threads of matrix products.
            gpus: above 0 uses the first visible GPU.
        """
        return await asyncio.to_thread(cls._load, config, model, threads, gpus)

    @classmethod
    def _load(cls, config: EngineConfig, where: ModelDir, threads: int, gpus: float) -> TransformersEngine:
        torch.set_num_threads(threads)
        device = torch.device("cuda" if gpus > 0 and torch.cuda.is_available() else "cpu")
        tokenizer = models.load_tokenizer(where.path, config.trust_remote_code)
        model = models.load_model(
            where.path, getattr(torch, models.dtype_name(config.dtype, device.type)), config.trust_remote_code
        )
        return cls(model.to(device).eval(), tokenizer, config, where, threads)

    async def generate(self, prompt: str | Sequence[int], sampling: Sampling) -> Generation:
        """Continue a prompt; see `Engine.generate`."""
        ids, room = prepare(prompt, sampling, self.tokenizer, self._vocabulary, self.context_length)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Generation] = loop.create_future()

        def settle(result: Generation | Exception) -> None:
            if answer.done():
                return
            if isinstance(result, Exception):
                answer.set_exception(_died(result))
            else:
                answer.set_result(result)

        def done(result: Generation | Exception) -> None:
            loop.call_soon_threadsafe(settle, result)

        request = Request(ids, room, sampling, done)
        with self._meter.request():
            try:
                self._batcher.submit(request)
            except Exception as error:
                raise _died(error) from error
            try:
                generation = await answer
            except asyncio.CancelledError:
                self._batcher.cancel(request)
                raise
        self._meter.add(generation)
        return generation

    def stats(self) -> EngineStats:
        """Totals since the start."""
        return self._meter.stats()

    async def close(self) -> None:
        """Stop after the current token and free the model."""
        await asyncio.to_thread(self._batcher.stop, EngineDied("the transformers engine was closed"))
        self.module = None
        self._batcher.kv.data = torch.empty(0)
        self._batcher.cache.clear()

    def _forward(self, ids: list[int], positions: list[int], wanted: list[int], step: Step) -> torch.Tensor:
        assert self.module is not None
        return _logits(self.module, ids, positions, wanted, step)


def _logits(
    model: PreTrainedModel, ids: list[int], positions: list[int], wanted: list[int], step: Step | None
) -> torch.Tensor:
    extra = {"raylm_step": step} if step is not None else {}
    return (
        model(
            input_ids=torch.tensor([ids], device=model.device),
            position_ids=torch.tensor([positions], device=model.device),
            logits_to_keep=torch.tensor(wanted, device=model.device),
            use_cache=False,
            **extra,
        )
        .logits[0]
        .float()
    )


def _take_over(model: PreTrainedModel, shape: Shape, where: ModelDir) -> None:
    """Put our attention into the model, and make sure that it computes what the model's own does."""
    from transformers import AttentionInterface

    AttentionInterface.register(kv_slots.NAME, kv_slots.attend)
    kv = KvSlots(shape, 1, 64)
    kv.reserve(64, [])
    count = min(24, model.get_input_embeddings().weight.shape[0])
    ids = list(range(count))
    try:
        with torch.inference_mode():
            own = _logits(model, ids, ids, ids, None).log_softmax(-1)
            model.set_attn_implementation(kv_slots.NAME)
            nothing = torch.empty(0, dtype=torch.long, device=shape.device)
            ours = _logits(model, ids, ids, ids, Step(kv, nothing, 0, [Segment(0, 0, count)])).log_softmax(-1)
    except Exception as error:
        raise UserError(
            f"{where.path}: {type(model).__name__} does not run with the transformers engine "
            f"({type(error).__name__}: {error}); set engine.kind=vllm"
        ) from error
    off = float((own - ours).abs().max())
    if not off < _TOLERANCE * (1 if shape.dtype == torch.float32 else 10):
        raise UserError(
            f"{where.path}: {type(model).__name__} has an attention that the transformers engine does not reproduce "
            f"(log-probabilities differ by {off:.3g}); set engine.kind=vllm"
        )


def _shape(model: PreTrainedModel) -> Shape:
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(config.num_hidden_layers, heads, size, model.dtype, model.device)


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a response: the tokenizer's, and those of the model's generation config."""
    given = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = given if isinstance(given, list) else [given]
    return sorted({token for token in [*listed, tokenizer.eos_token_id] if token is not None})


def _died(error: Exception) -> EngineDied:
    if isinstance(error, EngineDied):
        return EngineDied(str(error))
    return EngineDied(f"the transformers engine stopped: {type(error).__name__}: {error}")
