"""A deterministic engine without a model: it solves chains of sums one operation a line, and errs as often as told."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from raylm.errors import EngineDied
from raylm.llm import stops
from raylm.llm.config import EngineConfig
from raylm.llm.meter import Meter
from raylm.llm.protocol import Completion, EngineStats, Generation, ModelRef, Sampling
from raylm.llm.request import prepare

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EXPRESSION = re.compile(r"-?\d+(?:\s*[-+*/]\s*-?\d+)+")
_OPERATION = re.compile(r"\s*([-+*/])\s*(-?\d+)")
_LINE = re.compile(r"^-?\d+ [-+*/] -?\d+ = (-?\d+)$")
_BLOCK = 16


class ScriptedEngine:
    """A policy for arithmetic whose every word is a function of (prompt, sampling, sample index).

    It reads the last expression of the last question (products before sums, no parentheses) and the steps that the
    prompt's open turn already holds, and writes the other steps, one operation a line, and the answer. A step is
    right with probability `script.accuracy`, drawn from a hash; a wrong step is off by a little, and later steps go
    on from it.
    """

    name = "scripted"
    guided = False

    def __init__(self, config: EngineConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.script, self.context_length, self.tokenizer = config.script, config.context, tokenizer
        self.model = ModelRef("scripted", f"accuracy-{config.script.accuracy}")
        self._meter = Meter()
        self._seen: set[bytes] = set()
        self._started = 0
        self._dead = ""

    async def generate(self, prompt: str | Sequence[int], sampling: Sampling) -> Generation:
        """Continue a prompt; see `Engine.generate`."""
        ids, room = prepare(prompt, sampling, self.tokenizer, len(self.tokenizer), self.context_length)
        if self.script.fail_after and self._started >= self.script.fail_after:
            self._dead = self._dead or f"script.fail_after={self.script.fail_after} requests were answered"
        if self._dead:
            raise EngineDied(f"the scripted engine stopped: {self._dead}")
        self._started += 1
        with self._meter.request():
            if self.script.latency:
                await asyncio.sleep(self.script.latency)
            text = self.tokenizer.decode(ids)
            completions = [self._complete(text, sampling, index, room) for index in range(sampling.n)]
            generation = Generation(len(ids), self._reuse(ids), completions)
            self._meter.add(generation)
        return generation

    def stats(self) -> EngineStats:
        """Totals since the start."""
        return self._meter.stats()

    async def close(self) -> None:
        """Refuse later requests."""
        self._dead = "it was closed"

    def _reuse(self, ids: list[int]) -> int:
        """Tokens in whole blocks that an earlier prompt began with too, as a prefix cache of blocks counts them."""
        cached, chain, known = 0, b"", True
        for end in range(_BLOCK, len(ids), _BLOCK):
            chain = hashlib.sha256(chain + str(ids[end - _BLOCK : end]).encode()).digest()
            known = known and chain in self._seen
            cached = end if known else cached
            self._seen.add(chain)
        return cached

    def _complete(self, prompt: str, sampling: Sampling, index: int, room: int) -> Completion:
        seed = "greedy" if sampling.temperature == 0 else f"{sampling.seed}/{index}"
        ids = self.tokenizer.encode(_continue(prompt, seed, self.script.accuracy), add_special_tokens=False)
        reason: Literal["stop", "length"] = "stop" if len(ids) < room else "length"  # the end takes a token too
        text, ids, stopped = stops.cut(self.tokenizer, ids[:room], sampling.stop)
        logprobs = [math.log(0.5 + 0.5 * _draw(seed, prompt, position)) for position in range(len(ids))]
        return Completion(
            text, ids, "stop" if stopped else reason, logprobs if sampling.logprobs else None, stop_string=stopped
        )


def _continue(prompt: str, seed: str, accuracy: float) -> str:
    """The rest of the response that `prompt` breaks off in; it may break off within a line."""
    before, _, written = prompt.rpartition("<|im_start|>assistant\n")
    question = (before or prompt).rpartition("<|im_start|>user\n")[2]
    expressions = _EXPRESSION.findall(question)
    if not expressions:
        full = f"Answer: {int(_draw(seed, prompt) * 10)}"
        return "" if written else full
    terms, signs = _parse(expressions[-1])
    finished, _, partial = written.rpartition("\n")
    for match in filter(None, map(_LINE.match, finished.splitlines())):
        if signs:
            _reduce(terms, signs, int(match.group(1)))
    steps = []
    for number in range(len(signs)):
        place = _next(signs)
        left, sign, right = terms[place], signs[place], terms[place + 1]
        result = _apply(left, sign, right)
        if _draw(seed, prompt, "step", number) >= accuracy:
            result += 1 + int(8 * _draw(seed, prompt, "slip", number))
        begun = _LINE.match(partial) if number == 0 else None
        if begun and partial.startswith(f"{left} {sign} {right} = "):
            result = int(begun.group(1))  # the line lacks only its end
        steps.append(f"{left} {sign} {right} = {result}\n")
        _reduce(terms, signs, result)
    rest = "".join(steps) + f"Answer: {terms[0]}"
    if rest.startswith(partial):
        return rest[len(partial) :]
    return "" if partial.startswith("Answer:") else "\n" + rest


def _parse(expression: str) -> tuple[list[int], list[str]]:
    first = re.match(r"-?\d+", expression)
    assert first is not None
    operations = _OPERATION.findall(expression[first.end() :])
    return [int(first.group()), *(int(number) for _, number in operations)], [sign for sign, _ in operations]


def _next(signs: list[str]) -> int:
    """The operation to do first: the leftmost product or quotient, else the leftmost."""
    return next((place for place, sign in enumerate(signs) if sign in "*/"), 0)


def _reduce(terms: list[int], signs: list[str], result: int) -> None:
    place = _next(signs)
    terms[place : place + 2] = [result]
    del signs[place]


def _apply(left: int, sign: str, right: int) -> int:
    if sign == "/":
        return left // right if right else 0
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def _draw(*parts: object) -> float:
    """A number in [0, 1) that is the same for equal parts in every process."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
