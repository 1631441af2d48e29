"""Continuous batching on one thread: sequences join and leave the batch at every token.

A step admits waiting requests, runs one packed forward pass (see `kv_slots`), draws a token for every sequence, and
retires those that ended. A request's samples share one pass over its prompt. What a prompt or a finished sequence
computed goes into a prefix cache, and a request waits for one that is just computing a prefix of its own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from raylm.llm import stops
from raylm.llm.kv_slots import KvSlots, Segment, Step, pack
from raylm.llm.prefix_cache import PrefixCache, common_prefix
from raylm.llm.protocol import Completion, Generation, Sampling
from raylm.llm.sampling import draw, log_probabilities, uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STEP_TOKENS = 1024
"""Prompt tokens of a step after which it admits no further request."""
_WORTH_WAITING = 8
"""Shared prompt tokens for which a request waits a step instead of computing them too."""

Forward = Callable[[list[int], list[int], list[int], Step], torch.Tensor]
"""(token ids, positions, wanted indices, layout) to the fp32 logits of the wanted tokens."""


@dataclass(slots=True, eq=False)
class Request:
    """One prompt and its samples."""

    ids: list[int]
    room: int
    """Tokens that a sample may have."""
    sampling: Sampling
    done: Callable[[Generation | Exception], None]
    """Called once, on the batcher's thread."""
    cached: int | None = None
    started: int = 0
    """Samples that have begun."""
    completions: dict[int, Completion] = field(default_factory=dict)
    cancelled: bool = False


@dataclass(slots=True, eq=False)
class _Sequence:
    """One running sample; its slot is its place in the list of running ones."""

    request: Request
    sample: int
    uniforms: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Literal["", "stop", "length"] = ""

    @property
    def length(self) -> int:
        """Tokens whose keys and values its slot holds: all but the newest one."""
        return len(self.request.ids) + len(self.tokens) - 1


class Batcher:
    """The thread that owns the model, its slots and the prefix cache."""

    def __init__(
        self,
        forward: Forward,
        kv: KvSlots,
        cache: PrefixCache,
        tokenizer: PreTrainedTokenizerBase,
        *,
        ends: Sequence[int],
        threads: int,
    ) -> None:
        """Start the thread.

        Args:
            forward: the model.
            kv: keys and values of running sequences.
            cache: those of known prefixes.
            tokenizer: decodes samples, to find stop strings.
            ends: token ids that end a sequence.
            threads: of matrix products, on a CPU.
        """
        self.forward, self.kv, self.cache, self.tokenizer = forward, kv, cache, tokenizer
        self.ends, self.threads = frozenset(ends), threads
        self.running: list[_Sequence] = []
        self.waiting: deque[Request] = deque()
        self.error: Exception | None = None
        self._inbox: list[Request] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="raylm-batcher", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request; raises the error that stopped the thread, if one did."""
        with self._wake:
            if self.error is not None:
                raise self.error
            self._inbox.append(request)
            self._wake.notify()

    def cancel(self, request: Request) -> None:
        """Drop a request at the next token."""
        request.cancelled = True

    def stop(self, error: Exception) -> None:
        """End the thread after its current step; what is unfinished gets `error`."""
        with self._wake:
            self.error = self.error or error
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        torch.set_num_threads(self.threads)
        error: Exception
        try:
            with torch.inference_mode():
                while self._collect():
                    self._step()
            assert self.error is not None
            error = self.error
        except Exception as failure:  # whatever it is, every waiting caller must hear of it
            error = failure
        with self._wake:
            self.error = self.error or error
            unfinished = {id(item): item for item in [*(row.request for row in self.running), *self.waiting]}
            unfinished.update((id(item), item) for item in self._inbox)
            self.running.clear()
            self.waiting.clear()
            self._inbox.clear()
        for request in unfinished.values():
            request.done(error)

    def _collect(self) -> bool:
        """Take in new requests, waiting for one when there is nothing to do; False to end."""
        with self._wake:
            while not (self._inbox or self.waiting or self.running or self._stopping):
                self._wake.wait()
            self.waiting.extend(self._inbox)
            self._inbox.clear()
            return not self._stopping

    def _step(self) -> None:
        self._retire([row for row in self.running if row.request.cancelled])
        self.waiting = deque(request for request in self.waiting if not request.cancelled)
        decoding = list(self.running)
        begun, segments, news = self._admit()
        if not self.running:
            return
        lengths = [row.length for row in decoding]
        step = Step(
            self.kv,
            torch.tensor(lengths, dtype=torch.long, device=self.kv.shape.device),
            max(lengths, default=0),
            segments,
        )
        packed = pack([(row.tokens[-1], row.length) for row in decoding], news, segments)
        logits = self.forward(*packed, step)
        index = list(range(len(decoding)))
        for place, (request, rows) in enumerate(begun):
            slot = segments[place].slot
            prompt = len(request.ids)
            self.cache.insert(request.ids, lambda start, end, slot=slot: self.kv.read(slot, start, end))  # type: ignore[misc]
            self.kv.copy(slot, slot + 1, slot + len(rows), prompt)
            index += [len(decoding) + place] * len(rows)
        self._draw(logits[index])
        self._retire([row for row in self.running if row.finish])

    def _admit(self) -> tuple[list[tuple[Request, list[_Sequence]]], list[Segment], list[list[int]]]:
        """Give waiting requests slots: (request, its new sequences), their segments, and the tokens to compute."""
        begun: list[tuple[Request, list[_Sequence]]] = []
        segments: list[Segment] = []
        news: list[list[int]] = []
        lengths = [row.length for row in self.running]
        kept: deque[Request] = deque()
        while self.waiting and sum(map(len, news)) < _STEP_TOKENS:
            request = self.waiting.popleft()
            # At least one token must be computed to have logits to draw from.
            known, pieces = self.cache.match(request.ids[:-1])
            if any(common_prefix(request.ids[:-1], other.ids) >= known + _WORTH_WAITING for other, _ in begun):
                kept.append(request)
                continue
            if not self.kv.reserve(len(request.ids) + request.room, lengths):
                kept.append(request)
                break
            free = self.kv.rows(self.kv.capacity) - len(self.running)
            if free <= 0:
                kept.append(request)
                break
            slot, count = len(self.running), min(free, request.sampling.n - request.started)
            rows = [self._sequence(request, request.started + place) for place in range(count)]
            request.started += count
            request.cached = known if request.cached is None else request.cached
            self.kv.load(slot, pieces, known)
            begun.append((request, rows))
            segments.append(Segment(slot, known, len(request.ids) - known))
            news.append(request.ids[known:])
            self.running += rows
            lengths += [known] * count
            if request.started < request.sampling.n:
                kept.append(request)
                break
        self.waiting.extendleft(reversed(kept))
        return begun, segments, news

    def _sequence(self, request: Request, sample: int) -> _Sequence:
        greedy = request.sampling.temperature == 0
        numbers = np.zeros(request.room) if greedy else uniforms(request.sampling.seed, sample, request.room)
        return _Sequence(request, sample, numbers)

    def _draw(self, logits: torch.Tensor) -> None:
        """Draw the next token of every running sequence from its row of logits."""
        how = [row.request.sampling for row in self.running]
        device = logits.device
        tokens = draw(
            logits,
            torch.tensor([item.temperature for item in how], device=device),
            torch.tensor([item.top_p for item in how], device=device),
            torch.tensor([row.uniforms[len(row.tokens)] for row in self.running], device=device),
        )
        wanted = any(item.logprobs for item in how)
        logprobs = log_probabilities(logits, tokens).tolist() if wanted else [0.0] * len(how)
        for row, token, logprob in zip(self.running, tokens.tolist(), logprobs, strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if token in self.ends or stops.hit(self.tokenizer, row.tokens, row.request.sampling.stop):
                row.finish = "stop"
            elif len(row.tokens) == row.request.room:
                row.finish = "length"

    def _retire(self, gone: Sequence[_Sequence]) -> None:
        """Take sequences out of the batch, keep what they computed, and answer requests that are complete."""
        for row in gone:
            slot = self.running.index(row)
            request = row.request
            if row.tokens:
                known = (request.ids + row.tokens)[: row.length]
                self.cache.insert(known, lambda start, end, slot=slot: self.kv.read(slot, start, end))  # type: ignore[misc]
            last = self.running.pop()
            if last is not row:
                self.running[slot] = last
                self.kv.copy(len(self.running), slot, slot + 1, last.length)
            if row.finish:
                request.completions[row.sample] = self._completion(row)
            if len(request.completions) == request.sampling.n and not request.cancelled:
                ordered = [request.completions[sample] for sample in range(request.sampling.n)]
                request.done(Generation(len(request.ids), request.cached or 0, ordered))

    def _completion(self, row: _Sequence) -> Completion:
        ended = row.tokens[-1] in self.ends
        tokens = row.tokens[:-1] if ended else row.tokens
        text, ids, stopped = stops.cut(self.tokenizer, tokens, row.request.sampling.stop)
        logprobs = row.logprobs[: len(ids)] if row.request.sampling.logprobs else None
        finish: Literal["stop", "length"] = "length" if row.finish == "length" and stopped is None else "stop"
        return Completion(text, ids, finish, logprobs, stopped)
