"""What a pair teaches: where its paths part, what failed on the bad side, and which step would have saved it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from raylm.crps.operations import Operation, operations
from raylm.crps.pairs import Contrast, Pair, Path
from raylm.tasks.answers import Equality, equalities, final_answers, parse_number

FailureType = Literal[
    "arithmetic", "algebra", "misread", "wrong_theorem", "missing_case", "premature_answer", "inefficient"
]

_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pivot(_Frozen):
    """A place where two paths take different steps; indices count from 0."""

    step_a: int
    """Step of the good path."""
    step_b: int
    """Step of the bad path."""
    why: str


class FailureMode(_Frozen):
    """What is wrong with one step of the bad path."""

    step_index: int
    type: FailureType
    quote: str
    """Words of that step."""
    fix: str


class Critique(_Frozen):
    """The reflection on one pair (source: released code; pivots, failure_modes, confidence, contrast_type: ours)."""

    divergence_step_index: int
    """The first step that differs, which is also the number of shared steps."""
    pivots: list[Pivot]
    failure_modes: list[FailureMode]
    """The surest first."""
    critique_a: str
    critique_b: str
    global_analysis: str
    success_pattern: str
    failure_mode_to_avoid: str
    confidence: float = Field(ge=0, le=1)
    contrast_type: Contrast

    def digest(self) -> str:
        """Twelve hex digits of the critique's content."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Reflection:
    """What came of an analyst's work on a pair."""

    critique: Critique | None
    """None when no answer was valid."""
    rejects: tuple[str, ...] = ()
    """Why answers were rejected: `json`, `schema`, `content`, `prompt_too_long`."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0


class Analyst(Protocol):
    """Reads a pair and says what separates its paths. A pair holds no gold answer."""

    name: str

    async def reflect(self, pair: Pair, name: str) -> Reflection:
        """Critique a pair; `name` tells it from all others, for seeds."""
        ...


def faults(critique: Critique, pair: Pair) -> list[str]:
    """Why a critique is not valid for its pair: indices out of range, quotes that the cited step does not contain."""
    good, bad = pair.anchor.steps, pair.negative.steps
    found = []
    if not 0 <= critique.divergence_step_index <= min(len(good), len(bad)):
        found.append(f"divergence_step_index {critique.divergence_step_index} is out of range")
    if critique.contrast_type != pair.contrast:
        found.append(f"contrast_type {critique.contrast_type} is not the pair's, {pair.contrast}")
    if not critique.pivots or bool(critique.failure_modes) == (pair.contrast == "none"):
        found.append("a critique names at least one pivot, and one failure mode where there is a solution B")
    for pivot in critique.pivots:
        if not (0 <= pivot.step_a < len(good) and 0 <= pivot.step_b < len(bad)):
            found.append(f"pivot ({pivot.step_a}, {pivot.step_b}) is out of range")
    for mode in critique.failure_modes:
        if not 0 <= mode.step_index < len(bad):
            found.append(f"failure at step {mode.step_index} is out of range")
        elif not mode.quote.strip() or mode.quote not in bad[mode.step_index]:
            found.append(f"step {mode.step_index} does not say {mode.quote!r}")
    return found


def pivot_error(critique: Critique, pair: Pair) -> int:
    """Steps between the divergence that a critique claims and the tree's."""
    return abs(critique.divergence_step_index - pair.shared)


class StructuralAnalyst:
    """Reads the critique off the tree: every claim in it can be recomputed from the pair, without a model."""

    name = "structural"

    async def reflect(self, pair: Pair, name: str) -> Reflection:
        """See `critique`; it costs no tokens."""
        return Reflection(self.critique(pair))

    def critique(self, pair: Pair) -> Critique:
        """The divergence, the drop in value, the failures by falling certainty, and the step that would have helped."""
        if pair.contrast == "none":
            return _of_one(pair)
        at_a, at_b = _place(pair.anchor, pair.shared), _place(pair.negative, pair.shared)
        found = list(_failures(pair, at_a, at_b))
        modes = [mode for mode, _ in found]
        fall, size = _fall(pair.negative, pair.shared)
        good, bad = pair.anchor.values[at_a + 1], pair.negative.values[at_b + 1]
        return Critique(
            divergence_step_index=pair.shared,
            pivots=[
                Pivot(
                    step_a=at_a,
                    step_b=at_b,
                    why=f"mean reward {good:.2f} below one, {bad:.2f} below the other",
                )
            ],
            failure_modes=modes,
            critique_a=f"{_count(pair.anchor)}; {_soundness(pair.anchor)}",
            critique_b=f"{_count(pair.negative)}; {_soundness(pair.negative)}; "
            + (f"the mean reward falls most, by {size:.2f}, at step {fall}" if size > 0 else "its value never falls"),
            global_analysis=_story(pair, at_a, at_b),
            success_pattern=pair.anchor.steps[at_a].strip(),
            failure_mode_to_avoid=f"{modes[0].type}: {modes[0].quote}",
            confidence=found[0][1],
            contrast_type=pair.contrast,
        )


def _of_one(pair: Pair) -> Critique:
    """What a good path alone shows: its decisive step is the one at which the mean reward rises most."""
    path = pair.anchor
    rises = [(path.values[index + 1] - path.values[index], -index) for index in range(len(path.steps))]
    size, index = max(rises)
    at = _place(path, -index)
    return Critique(
        divergence_step_index=at,
        pivots=[Pivot(step_a=at, step_b=at, why=f"the mean reward rises by {size:.2f}")],
        failure_modes=[],
        critique_a=f"{_count(path)}; {_soundness(path)}",
        critique_b="",
        global_analysis=f"the decisive step is {path.steps[at].strip()!r}",
        success_pattern=path.steps[at].strip(),
        failure_mode_to_avoid="",
        confidence=0.3,
        contrast_type="none",
    )


def _failures(pair: Pair, at_a: int, at_b: int) -> Iterator[tuple[FailureMode, float]]:
    """Failure modes with the confidence in each (source: our choice)."""
    good, bad = pair.anchor.steps[at_a].strip(), pair.negative.steps[at_b].strip()
    if pair.contrast == "soft":
        yield FailureMode(step_index=at_b, type="inefficient", quote=bad, fix=good), 1.0
        return
    broken = _miscalculation(pair.negative, at_b)
    if broken is not None:
        yield broken, 1.0
    if final_answers(bad) and not final_answers(good):
        yield FailureMode(step_index=at_b, type="premature_answer", quote=bad, fix=good), 0.9
        return
    if broken is None and final_answers(bad):  # both answer here: the bad one copies its own result wrongly
        yield FailureMode(step_index=at_b, type="misread", quote=bad, fix=good), 0.9
        return
    misread = _other_operation(pair, at_a, at_b)
    if misread is not None:
        yield misread
    if broken is None and misread is None:
        place = _place(pair.negative, max(pair.shared, _fall(pair.negative, pair.shared)[0]))
        step = pair.negative.steps[place].strip()
        fix = pair.rescue.text.strip() if pair.rescue else good
        yield FailureMode(step_index=place, type="algebra" if "=" in step else "misread", quote=step, fix=fix), 0.3


def _miscalculation(path: Path, start: int) -> FailureMode | None:
    """The first explicit equality from step `start` on that does not hold."""
    for index in range(start, len(path.steps)):
        for claim in equalities(path.steps[index]):
            if not claim.holds:
                quote = claim.text if claim.text in path.steps[index] else path.steps[index].strip()
                return FailureMode(step_index=index, type="arithmetic", quote=quote, fix=_corrected(claim))
    return None


def _corrected(claim: Equality) -> str:
    left, _, right = (part.strip() for part in claim.text.partition("="))
    if parse_number(left) is not None:  # 7 = 3 + 5: the right side computes
        return f"{_decimal(claim.right)} = {right}"
    return f"{left} = {_decimal(claim.left)}"


def _other_operation(pair: Pair, at_a: int, at_b: int) -> tuple[FailureMode, float] | None:
    """How the operations differ at the pivot: a number from nowhere, another operator, or a given number left out."""
    good, bad = operations(pair.anchor.steps[at_a]), operations(pair.negative.steps[at_b])
    if not good or not bad:
        return None
    right, other = good[0], bad[0]

    def mode(kind: FailureType, fix: str) -> FailureMode:
        return FailureMode(step_index=at_b, type=kind, quote=other.text, fix=fix)

    given = _numbers(pair.question)
    known = given | {item.result for step in pair.anchor.steps[:at_a] for item in operations(step)}
    if set(other.numbers) - known - set(right.numbers) and set(right.numbers) <= known:
        return mode("misread", right.text), 0.8
    if sorted(other.numbers) == sorted(right.numbers) and other.signs != right.signs:
        return mode("wrong_theorem", right.text), 0.7
    left_out = (_used(pair.anchor) & given) - _numbers(pair.negative.text)
    if left_out:
        return mode("missing_case", f"use {', '.join(sorted(left_out))}"), 0.6
    if sorted(other.numbers) != sorted(right.numbers):
        return mode("misread", right.text), 0.4
    return None


def _used(path: Path) -> set[str]:
    return {number for item in _all(path) for number in item.numbers}


def _all(path: Path) -> list[Operation]:
    return [item for step in path.steps for item in operations(step)]


def _numbers(text: str) -> set[str]:
    return {number.replace(",", "") for number in _NUMBER.findall(text)}


def _place(path: Path, step: int) -> int:
    """`step`, or the last step before it that says something where the path ends with an empty one."""
    place = min(step, len(path.steps) - 1)
    while place > 0 and not path.steps[place].strip():
        place -= 1
    return place


def _fall(path: Path, start: int) -> tuple[int, float]:
    """The step from `start` on at which the mean reward falls most, and by how much; (start, 0) when it never does."""
    falls = [(path.values[index] - path.values[index + 1], -index) for index in range(start, len(path.steps))]
    size, index = max(falls, default=(0.0, -start))
    return (-index, size) if size > 0 else (start, 0.0)


def _count(path: Path) -> str:
    return f"{path.length} step{'s' * (path.length != 1)}"


def _soundness(path: Path) -> str:
    claims = [claim for step in path.steps for claim in equalities(step)]
    if not claims:
        return "no explicit equality"
    wrong = sum(not claim.holds for claim in claims)
    return f"{wrong} of {len(claims)} equalities do not hold" if wrong else "every equality holds"


def _story(pair: Pair, at_a: int, at_b: int) -> str:
    shared = f"{pair.shared} shared step{'s' * (pair.shared != 1)}"
    parts = [
        f"after {shared} one goes on with {pair.anchor.steps[at_a].strip()!r}, "
        f"the other with {pair.negative.steps[at_b].strip()!r}"
    ]
    if pair.rescue is not None and pair.rescue.text.strip():
        saved = pair.rescue.text.strip()
        parts.append(f"at step {pair.rescue.step} node {pair.rescue.node}, {saved!r}, leads to a right answer")
    return "; ".join(parts)


def _decimal(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.6g}"
