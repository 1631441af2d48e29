"""An analyst and a synthesizer that are language models (source: CRPS's own way)."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from raylm.crps import prompts
from raylm.crps.config import LlmConfig
from raylm.crps.pairs import Pair
from raylm.crps.reflect import Critique, Reflection, StructuralAnalyst, faults
from raylm.crps.synthesize import Draft
from raylm.errors import PromptTooLong
from raylm.llm.chat import prompt_ids
from raylm.llm.protocol import Engine, Generation, Sampling
from raylm.seeds import stable_seed

_FIRST_KEY = "divergence_step_index"
"""What tells a critique from other objects that an answer may hold."""


class LlmAnalyst:
    """Asks an engine for a critique, and again when what comes is no valid one."""

    name = "llm"

    def __init__(self, engine: Engine, config: LlmConfig, seed: int) -> None:
        self.engine, self.config, self.seed = engine, config, seed

    async def reflect(self, pair: Pair, name: str) -> Reflection:
        """A valid critique within `1 + retries` answers, or none; rejected answers are counted by their reason."""
        messages = prompts.analyst(pair, _evidence(pair) if self.config.evidence else ())
        start = time.monotonic()
        rejects: list[str] = []
        asked = generated = 0
        told: Sequence[dict[str, str]] = messages
        for attempt in range(1 + self.config.retries):
            how = Sampling(
                temperature=self.config.temperature,
                max_tokens=self.config.critique_tokens,
                seed=stable_seed(self.seed, "analyst", name, attempt),
                schema_json=prompts.schema(pair) if self.engine.guided else "",
            )
            answer = await _ask(self.engine, told, how)
            if answer is None:
                rejects.append("prompt_too_long")
                break
            asked, generated = asked + answer.prompt_tokens, generated + answer.generated_tokens
            critique, reason, found = read(answer.completions[0].text, pair)
            if critique is not None:
                return Reflection(critique, tuple(rejects), asked, generated, time.monotonic() - start)
            rejects.append(reason)
            told = prompts.again(messages, found)
        return Reflection(None, tuple(rejects), asked, generated, time.monotonic() - start)


class LlmSynthesizer:
    """Asks an engine for a chain, from the problem and the critique alone."""

    name = "llm"

    def __init__(self, engine: Engine, config: LlmConfig, seed: int, style: str) -> None:
        """`style` is a worked chain whose form is followed; may be empty."""
        self.engine, self.config, self.seed, self.style = engine, config, seed, style

    async def write(self, pair: Pair, critique: Critique, name: str) -> Draft:
        """A chain from what a pair teaches."""
        return await self._draft(prompts.writer(pair, critique, self.style), name)

    async def solve(self, question: str, name: str) -> Draft:
        """A chain from the problem alone."""
        return await self._draft(prompts.solver(question, self.style), name)

    async def _draft(self, messages: Sequence[dict[str, str]], name: str) -> Draft:
        how = Sampling(
            temperature=self.config.temperature,
            max_tokens=self.config.chain_tokens,
            seed=stable_seed(self.seed, "synthesizer", name),
        )
        start = time.monotonic()
        answer = await _ask(self.engine, messages, how)
        if answer is None:
            return Draft("", "prompt_too_long")
        completion = answer.completions[0]
        fault = "cut_off" if completion.finish_reason == "length" else ""
        seconds = time.monotonic() - start
        return Draft(completion.text.strip(), fault, answer.prompt_tokens, answer.generated_tokens, seconds)


def read(text: str, pair: Pair) -> tuple[Critique | None, str, list[str]]:
    """The critique that an answer holds.

    Returns:
        the critique when it is valid, else None; `json`, `schema` or `content` for the reason; what is wrong in words.
    """
    value, wrong = _object(text)
    if value is None:
        return None, "json", [f"it is no JSON object ({wrong})"]
    try:
        critique = Critique.model_validate(value)
    except ValidationError as error:
        return None, "schema", [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:3]]
    found = faults(critique, pair)
    return (None, "content", found[:3]) if found else (critique, "", [])


def _object(text: str) -> tuple[dict[str, Any] | None, str]:
    """The JSON object of a critique wherever it stands in an answer, else the first object of any kind; what is wrong
    when there is none."""
    found: dict[str, Any] | None = None
    wrong = ""
    at = text.find("{")
    while at >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
            json.dumps(value, ensure_ascii=False).encode()  # half a character could be neither asked with nor stored
        except RecursionError:
            return None, "it is nested too deeply"
        except ValueError as error:
            wrong, end = wrong or str(error), at + 1
        else:
            if _FIRST_KEY in value:
                return value, ""
            found = value if found is None else found
        at = text.find("{", end)
    return (None, wrong or "there is none") if wrong or found is None else (found, "")


def _evidence(pair: Pair) -> list[str]:
    """Facts of the tree that need no model: an analyst that cites them is right about them."""
    seen = StructuralAnalyst().critique(pair)
    facts = [f"the solutions differ first in step {seen.divergence_step_index}"] if pair.contrast != "none" else []
    facts += [f"solution A: {seen.critique_a}"]
    if pair.contrast != "none":
        facts += [f"solution B: {seen.critique_b}"]
    facts += [
        f"step {mode.step_index} of B says {mode.quote!r}; {mode.fix!r} would hold"
        for mode in seen.failure_modes
        if mode.type == "arithmetic"
    ]
    return facts


async def _ask(engine: Engine, messages: Sequence[dict[str, str]], how: Sampling) -> Generation | None:
    """The engine's answer; None when the request does not fit its context."""
    try:
        return await engine.generate(prompt_ids(engine.tokenizer, messages), how)
    except PromptTooLong:
        return None
