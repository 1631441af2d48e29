"""A deterministic engine without a model: it solves chains of sums one operation a line, and errs as often as told."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raylm.errors import EngineDied, PromptTooLong
from raylm.llm.config import EngineConfig
from raylm.llm.protocol import Completion, EngineStats, Generation, ModelRef, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EXPRESSION = re.compile(r"-?\d+(?:\s*[-+*]\s*-?\d+)+")
_OPERATION = re.compile(r"\s*([-+*])\s*(-?\d+)")
_LINE = re.compile(r"^(-?\d+) [-+*] -?\d+ = (-?\d+)$")


class ScriptedEngine:
    """A policy for arithmetic chains whose every word is a function of (prompt, sampling, sample index).

    A step is right with probability `script.accuracy`, drawn from a hash; a wrong step is off by a little, and later
    steps go on from it.
    """

    name = "scripted"

    def __init__(self, config: EngineConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.script, self.context_length, self.tokenizer = config.script, config.context, tokenizer
        self.model = ModelRef("scripted", f"accuracy-{config.script.accuracy}")
        self._stats = EngineStats()
        self._known: set[tuple[int, ...]] = set()
        self._closed = ""

    async def generate(self, prompt: str | Sequence[int], sampling: Sampling) -> Generation:
        """Continue a prompt; see `Engine.generate`."""
        ids = self.tokenizer.encode(prompt, add_special_tokens=False) if isinstance(prompt, str) else list(prompt)
        if len(ids) >= self.context_length:
            raise PromptTooLong(
                f"a prompt of {len(ids)} tokens does not fit a context of {self.context_length}; raise engine.context"
            )
        if self.script.fail_after and self._stats.requests >= self.script.fail_after:
            self._closed = f"script.fail_after={self.script.fail_after} requests were answered"
        if self._closed:
            raise EngineDied(f"the scripted engine stopped: {self._closed}")
        self._stats.requests += 1
        if self.script.latency:
            await asyncio.sleep(self.script.latency)
        text = self.tokenizer.decode(ids)
        room = min(sampling.max_tokens, self.context_length - len(ids))
        cached = self._cached(ids)
        completions = [self._complete(text, sampling, index, room) for index in range(sampling.n)]
        generation = Generation(len(ids), cached, completions)
        self._stats.prompt_tokens += len(ids)
        self._stats.cached_tokens += cached
        self._stats.generated_tokens += generation.generated_tokens
        return generation

    def stats(self) -> EngineStats:
        """Totals since the start."""
        return self._stats

    async def close(self) -> None:
        """Refuse later requests."""
        self._closed = "it was closed"

    def _cached(self, ids: list[int], block: int = 16) -> int:
        """Tokens in whole blocks that an earlier prompt began with, as a block-wise prefix cache counts them."""
        blocks = [tuple(ids[:end]) for end in range(block, len(ids), block)]
        cached = max((len(prefix) for prefix in blocks if prefix in self._known), default=0)
        self._known.update(blocks)
        return cached

    def _complete(self, prompt: str, sampling: Sampling, index: int, room: int) -> Completion:
        seed = "greedy" if sampling.temperature == 0 else f"{sampling.seed}/{index}"
        full = _continue(prompt, seed, self.script.accuracy)
        ids, reason, stopped = self.tokenizer.encode(full, add_special_tokens=False), "stop", None
        if len(ids) > room - 1:  # the end-of-sequence token needs a place too
            ids, reason = ids[:room], "length"
        text = self.tokenizer.decode(ids)
        cuts = sorted((text.find(stop), stop) for stop in sampling.stop if stop in text)
        if cuts:
            text, stopped, reason = text[: cuts[0][0]], cuts[0][1], "stop"
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        logprobs = [math.log(0.5 + 0.5 * _draw(seed, prompt, position)) for position in range(len(ids))]
        return Completion(text, ids, reason, logprobs if sampling.logprobs else None, stopped)  # type: ignore[arg-type]


def _continue(prompt: str, seed: str, accuracy: float) -> str:
    """The rest of the response that `prompt` breaks off in."""
    question, _, written = prompt.rpartition("<|im_start|>assistant\n")
    expressions = _EXPRESSION.findall(question or prompt)
    if not expressions:
        return f"Answer: {int(_draw(seed, prompt) * 10)}"
    first, operations = _parse(expressions[-1])
    lines = [line for line in written.splitlines() if _LINE.match(line)]
    value = int(_LINE.match(lines[-1]).group(2)) if lines else first  # type: ignore[union-attr]
    steps = []
    for number, (sign, operand) in enumerate(operations[len(lines) :], start=len(lines)):
        right = {"+": value + operand, "-": value - operand, "*": value * operand}[sign]
        draw = _draw(seed, prompt, "step", number)
        result = right if draw < accuracy else right + 1 + int(8 * _draw(seed, prompt, "slip", number))
        steps.append(f"{value} {sign} {operand} = {result}\n")
        value = result
    done = written.rstrip("\n").splitlines()[-1:] == [f"Answer: {value}"]
    return "" if done else "".join(steps) + f"Answer: {value}"


def _parse(expression: str) -> tuple[int, list[tuple[str, int]]]:
    match = re.match(r"-?\d+", expression)
    assert match is not None
    return int(match.group()), [(sign, int(number)) for sign, number in _OPERATION.findall(expression[match.end() :])]


def _draw(*parts: object) -> float:
    """A number in [0, 1) that is the same for equal parts in every process."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
