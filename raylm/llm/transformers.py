"""The engine that runs wherever PyTorch does: continuous batching, prefix reuse, sampling that ignores batch mates.

One thread owns the model. It alternates between prefilling new prompts and decoding one token for every sequence in
flight; sequences join and leave at token boundaries. The n samples of a prompt share its prefill, and prompts share
the keys and values of prefixes that were computed before. Every draw is a hash of (seed, sample, position), so a sample
does not depend on what else is in flight, up to floating-point sums over batches of other shapes.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from raylm.errors import EngineDied, PromptTooLong, UserError
from raylm.llm import models
from raylm.llm.config import EngineConfig
from raylm.llm.kv import BLOCK, PrefixCache, SlotCache
from raylm.llm.protocol import Completion, EngineStats, Generation, Sampling

if TYPE_CHECKING:
    from raylm.llm.models import ModelDir

_PREFILL_TOKENS = 1024
"""Prompt tokens of one prefill pass; sequences in flight wait no longer than that."""


@dataclass(slots=True)
class _Request:
    ids: list[int]
    sampling: Sampling
    future: asyncio.Future[Generation]
    loop: asyncio.AbstractEventLoop
    left: int
    """Samples that have not joined yet."""
    done: list[Completion | None]
    cached: int = -1
    cancelled: bool = False


@dataclass(slots=True)
class _Row:
    """One sample in flight; its place in `TransformersEngine._rows` is its slot."""

    request: _Request
    index: int
    tokens: list[int] = field(default_factory=list)
    """Sampled so far; all but the last have their keys and values in the slot."""
    logprobs: list[float] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens whose keys and values are in the slot."""
        return len(self.request.ids) + len(self.tokens) - 1


class TransformersEngine:
    """A Hugging Face causal language model behind `Engine`."""

    name = "transformers"

    def __init__(self, config: EngineConfig, directory: ModelDir, threads: int) -> None:
        """Load the model and start its thread.

        Args:
            config: model, context, precision, sequences in flight and memory for prefixes.
            directory: the model's files.
            threads: size of PyTorch's thread pool on CPUs.

        Raises:
            UserError: the model's context is shorter than the config's.
        """
        self.model, self.context_length = directory.ref, config.context
        self.tokenizer = models.load_tokenizer(directory.path, config.trust_remote_code)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        names = {"auto": torch.bfloat16 if self._device == "cuda" else torch.float32}
        dtype = names.get(config.dtype) or getattr(torch, config.dtype)
        self._net = models.load_model(directory.path, dtype, config.trust_remote_code).to(self._device).eval()
        longest = getattr(self._net.config, "max_position_embeddings", config.context)
        if config.context > longest:
            raise UserError(f"engine.context={config.context} is more than {config.model}'s {longest}; lower it")
        self._stop_ids = _stop_ids(self._net, self.tokenizer)
        self._threads, self._slots = threads, config.max_in_flight
        self._cache = SlotCache(self._slots)
        self._prefixes = PrefixCache(config.kv_cache_gib * 2**30)
        self._rows: list[_Row] = []
        self._waiting: collections.deque[_Request] = collections.deque()
        self._inbox: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._stats, self._cause, self._closing = EngineStats(), "", False
        self._thread = threading.Thread(target=self._serve, name="raylm-engine", daemon=True)
        self._thread.start()

    async def generate(self, prompt: str | Sequence[int], sampling: Sampling) -> Generation:
        """Continue a prompt; see `Engine.generate`."""
        ids = self.tokenizer.encode(prompt, add_special_tokens=False) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise UserError("an empty prompt cannot be continued")
        if len(ids) >= self.context_length:
            raise PromptTooLong(
                f"a prompt of {len(ids)} tokens does not fit a context of {self.context_length}; raise engine.context"
            )
        if self._cause:
            raise EngineDied(self._cause)
        loop = asyncio.get_running_loop()
        request = _Request(ids, sampling, loop.create_future(), loop, sampling.n, [None] * sampling.n)
        self._inbox.put(request)
        if self._cause:  # the thread ended between the check and the put: nobody would answer
            raise EngineDied(self._cause)
        try:
            return await request.future
        except asyncio.CancelledError:
            request.cancelled = True
            raise

    def stats(self) -> EngineStats:
        """Totals since the start."""
        return self._stats

    async def close(self) -> None:
        """End the thread and free the model."""
        self._closing = True
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)
        self._net = self._cache = self._prefixes = None  # type: ignore[assignment]

    def _serve(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                while self._receive():
                    start = time.monotonic()
                    self._drop_cancelled()
                    if self._waiting and len(self._rows) < self._slots:
                        self._prefill()
                    if self._rows:
                        self._decode()
                    self._stats.busy_seconds += time.monotonic() - start
            self._cause = "the engine was closed"
        except BaseException as error:  # whatever it was, every caller must hear of it
            self._cause = f"the transformers engine stopped: {type(error).__name__}: {error}"
        self._fail_all()

    def _receive(self) -> bool:
        """Take in new requests, waiting for one when there is nothing to do; False when the engine closes."""
        while True:
            idle = not self._rows and not self._waiting
            try:
                request = self._inbox.get(block=idle)
            except queue.Empty:
                return not self._closing
            if request is None or self._closing:
                return False
            self._waiting.append(request)

    def _drop_cancelled(self) -> None:
        for slot in reversed(range(len(self._rows))):
            if self._rows[slot].request.cancelled:
                self._leave(slot)
        self._waiting = collections.deque(request for request in self._waiting if not request.cancelled)

    def _prefill(self) -> None:
        """Start waiting requests: one pass over the tokens that no kept prefix covers."""
        batch: list[tuple[_Request, int, int]] = []  # request, samples that join now, tokens reused
        first = slot = len(self._rows)
        width = 0
        while self._waiting and slot < self._slots:
            request = self._waiting[0]
            blocks = self._prefixes.find(request.ids)
            new = len(request.ids) - BLOCK * len(blocks)
            if batch and max(width, new) * (len(batch) + 1) > _PREFILL_TOKENS:
                break
            width = max(width, new)
            joining = min(request.left, self._slots - slot)
            place = first + len(batch)
            for number, block in enumerate(blocks):
                self._cache.write(place, number * BLOCK, block)
            batch.append((request, joining, BLOCK * len(blocks)))
            slot += joining
            self._waiting.popleft()
        logits = self._pass(
            first, [reused for *_, reused in batch], [request.ids[reused:] for request, _, reused in batch]
        )
        self._join(first, batch, logits)

    def _join(self, first: int, batch: list[tuple[_Request, int, int]], logits: torch.Tensor) -> None:
        """Turn prefilled prompts, which stand in the slots from `first` on, into one row a sample."""
        for number, (request, _, reused) in enumerate(batch):
            self._prefixes.keep(request.ids, self._cache, first + number)
            if request.cached < 0:
                request.cached = reused
                self._stats.requests += 1
                self._stats.prompt_tokens += len(request.ids)
                self._stats.cached_tokens += reused
        # From the last prompt to the first: its samples go to slots at or behind the one that it stands in.
        ends = first
        for _, joining, _ in batch:
            ends += joining
        rows: list[_Row] = []
        picks: list[int] = []
        end = ends
        for number in reversed(range(len(batch))):
            request, joining, _ = batch[number]
            for slot in reversed(range(end - joining, end)):
                if slot != first + number:
                    self._cache.copy(first + number, slot, len(request.ids))
            end -= joining
        for number, (request, joining, _) in enumerate(batch):
            begin = request.sampling.n - request.left
            rows += [_Row(request, begin + index) for index in range(joining)]
            picks += [number] * joining
            request.left -= joining
            if request.left:
                self._waiting.appendleft(request)
        self._rows += rows
        self._sample(rows, logits[picks])
        self._retire(first)

    def _decode(self) -> None:
        logits = self._pass(0, [row.length for row in self._rows], [row.tokens[-1:] for row in self._rows])
        self._sample(self._rows, logits)
        self._retire(0)

    def _pass(self, first: int, lengths: list[int], tokens: list[list[int]]) -> torch.Tensor:
        """Feed each row from `first` on its tokens behind its length; logits (rows, vocabulary) of each row's last."""
        width = max(len(ids) for ids in tokens)
        # Short rows are filled up behind their end; what is written there is overwritten before anything sees it.
        padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in tokens])
        positions = self._cache.aim(first, lengths, width)
        last = torch.tensor([len(ids) - 1 for ids in tokens])
        wanted, place = last.unique(return_inverse=True)
        output = self._net(
            input_ids=padded.to(self._device),
            position_ids=positions.to(self._device),
            attention_mask=self._cache.mask(self._net.dtype).to(self._device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=wanted,
        )
        return output.logits[torch.arange(len(tokens)), place].float()

    def _sample(self, rows: Sequence[_Row], logits: torch.Tensor) -> None:
        """Append one token to every row."""
        greedy = logits.argmax(-1).tolist()
        drawn = [index for index, row in enumerate(rows) if row.request.sampling.temperature > 0]
        picked = dict(zip(drawn, _draw([rows[index] for index in drawn], logits[drawn]), strict=True)) if drawn else {}
        wants_logprobs = any(row.request.sampling.logprobs for row in rows)
        tokens = [picked.get(index, greedy[index]) for index in range(len(rows))]
        if wants_logprobs:
            scores = logits.log_softmax(-1)[torch.arange(len(rows)), torch.tensor(tokens)].tolist()
        for index, row in enumerate(rows):
            row.tokens.append(tokens[index])
            if wants_logprobs:
                row.logprobs.append(scores[index])

    def _retire(self, first: int) -> None:
        """Finish the rows from `first` on whose newest token ended them."""
        for slot in reversed(range(first, len(self._rows))):
            completion = self._finished(self._rows[slot])
            if completion is None:
                continue
            row = self._rows[slot]
            request = row.request
            self._prefixes.keep((request.ids + row.tokens)[: row.length], self._cache, slot)
            self._stats.generated_tokens += len(completion.token_ids)
            request.done[row.index] = completion
            self._leave(slot)
            if all(item is not None for item in request.done):
                completions = [item for item in request.done if item is not None]
                _answer(request, Generation(len(request.ids), request.cached, completions))

    def _finished(self, row: _Row) -> Completion | None:
        sampling, tokens = row.request.sampling, row.tokens
        logprobs = row.logprobs if sampling.logprobs else None
        if tokens[-1] in self._stop_ids:
            return self._completion(tokens[:-1], "stop", logprobs)
        if sampling.stop:
            # Only the newest token can complete a stop string; a few before it give it its context.
            tail = self.tokenizer.decode(tokens[-(max(map(len, sampling.stop)) + 4) :], skip_special_tokens=True)
            if any(stop in tail for stop in sampling.stop):
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                cuts = sorted((text.find(stop), stop) for stop in sampling.stop if stop in text)
                if cuts:
                    kept = list(tokens)
                    while kept and len(self.tokenizer.decode(kept[:-1], skip_special_tokens=True)) >= cuts[0][0]:
                        kept.pop()
                    short = logprobs[: len(kept)] if logprobs is not None else None
                    return Completion(text[: cuts[0][0]], kept, "stop", short, cuts[0][1])
        if len(tokens) >= sampling.max_tokens or len(row.request.ids) + len(tokens) >= self.context_length:
            return self._completion(tokens, "length", logprobs)
        return None

    def _completion(self, tokens: list[int], reason: Any, logprobs: list[float] | None) -> Completion:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return Completion(text, list(tokens), reason, logprobs[: len(tokens)] if logprobs is not None else None)

    def _leave(self, slot: int) -> None:
        """Free a slot; the last row moves into it, so that rows stay together."""
        last = self._rows.pop()
        if slot < len(self._rows):
            self._cache.copy(len(self._rows), slot, last.length)
            self._rows[slot] = last

    def _fail_all(self) -> None:
        while not self._inbox.empty():
            request = self._inbox.get()
            if request is not None:
                self._waiting.append(request)
        for request in [*(row.request for row in self._rows), *self._waiting]:
            _answer(request, EngineDied(self._cause))
        self._rows, self._waiting = [], collections.deque()


def _answer(request: _Request, result: Generation | EngineDied) -> None:
    def settle() -> None:
        if request.future.done():
            return
        if isinstance(result, EngineDied):
            request.future.set_exception(result)
        else:
            request.future.set_result(result)

    if not request.loop.is_closed():
        request.loop.call_soon_threadsafe(settle)


def _draw(rows: Sequence[_Row], logits: torch.Tensor) -> list[int]:
    """One token a row by inverse transform sampling, at each row's temperature and nucleus."""
    sampling = [row.request.sampling for row in rows]
    temperature = torch.tensor([item.temperature for item in sampling], device=logits.device).unsqueeze(1)
    probabilities = (logits / temperature).softmax(-1)
    if any(item.top_p < 1 for item in sampling):
        nucleus = torch.tensor([item.top_p for item in sampling], device=logits.device).unsqueeze(1)
        ordered, order = probabilities.sort(-1, descending=True)
        # A token stays while those before it hold less than top_p; the first always does.
        ordered[(ordered.cumsum(-1) - ordered) >= nucleus] = 0.0
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    cumulative = probabilities.double().cumsum(-1)
    draws = torch.tensor(
        [_uniform(row.request.sampling.seed, row.index, len(row.tokens)) for row in rows],
        dtype=torch.float64,
        device=logits.device,
    )
    targets = draws.unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True).squeeze(1).clamp_(max=logits.shape[1] - 1).tolist()


def _uniform(seed: int, index: int, position: int) -> float:
    digest = hashlib.blake2b(f"{seed}/{index}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _stop_ids(net: Any, tokenizer: Any) -> set[int]:
    stops = net.generation_config.eos_token_id
    listed = stops if isinstance(stops, list) else [stops]
    return {token for token in [*listed, tokenizer.eos_token_id] if token is not None}
