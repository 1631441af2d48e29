"""What a pair teaches: where it parts, what failed on the bad side, what saved the good one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from raylm.crps.pairs import Pair
from raylm.records import Trajectory, Tree
from raylm.tasks.answers import equalities, final_answers

FailureType = Literal[
    "arithmetic", "algebra", "misread", "wrong_theorem", "missing_case", "premature_answer", "inefficient"
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pivot(_Frozen):
    """A place where two paths take different steps."""

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
    """The reflection on one pair (fields: source: released code; pivots, failure_modes, confidence: ours)."""

    divergence_step_index: int
    pivots: list[Pivot]
    failure_modes: list[FailureMode]
    critique_a: str
    critique_b: str
    global_analysis: str
    success_pattern: str
    failure_mode_to_avoid: str
    confidence: float
    contrast_type: Literal["hard", "soft"]

    def digest(self) -> str:
        """Twelve hex digits of the critique's content."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


class Analyst(Protocol):
    """Reads a pair and says what separates its paths. It is not given the gold answer."""

    name: str

    def reflect(self, tree: Tree, pair: Pair) -> Critique: ...


class StructuralAnalyst:
    """Reads the critique off the tree: its divergence, its drop in value, and the equality that does not hold."""

    name = "structural"

    def reflect(self, tree: Tree, pair: Pair) -> Critique:
        """A critique whose every claim can be recomputed from the tree."""
        good, bad = steps(tree, pair.anchor), steps(tree, pair.negative)
        values = {node.id: node.value for node in tree.nodes}
        at_a, at_b = min(pair.shared, len(good) - 1), min(pair.shared, len(bad) - 1)
        failure = _failure(good, bad, at_a, at_b, pair)
        rise = values[pair.anchor.node_ids[at_a]] - values[pair.negative.node_ids[at_b]]
        return Critique(
            divergence_step_index=pair.shared,
            pivots=[Pivot(step_a=at_a, step_b=at_b, why=f"the mean reward below the two steps differs by {rise:+.2f}")],
            failure_modes=[failure],
            critique_a=f"{len(good)} steps; every stated equality holds" if _sound(good) else f"{len(good)} steps",
            critique_b=f"{len(bad)} steps; {failure.type} at step {failure.step_index}",
            global_analysis=f"the paths share {pair.shared} steps and part at {good[at_a].strip()!r}",
            success_pattern=good[at_a].strip(),
            failure_mode_to_avoid=failure.quote,
            confidence=1.0 if failure.type in ("arithmetic", "inefficient") else 0.5,
            contrast_type=pair.contrast,
        )


def steps(tree: Tree, path: Trajectory) -> list[str]:
    """Texts of a path's steps."""
    texts = {node.id: node.text for node in tree.nodes}
    return [texts[node] for node in path.node_ids]


def problems(critique: Critique, tree: Tree, pair: Pair) -> list[str]:
    """Why a critique is not valid for its pair: indices out of range, quotes that the cited step does not contain."""
    good, bad = steps(tree, pair.anchor), steps(tree, pair.negative)
    found = []
    if not 0 <= critique.divergence_step_index <= min(len(good), len(bad)):
        found.append(f"divergence_step_index {critique.divergence_step_index} is out of range")
    for pivot in critique.pivots:
        if not (0 <= pivot.step_a < len(good) and 0 <= pivot.step_b < len(bad)):
            found.append(f"pivot ({pivot.step_a}, {pivot.step_b}) is out of range")
    for mode in critique.failure_modes:
        if not 0 <= mode.step_index < len(bad):
            found.append(f"failure at step {mode.step_index} is out of range")
        elif mode.quote not in bad[mode.step_index]:
            found.append(f"step {mode.step_index} does not say {mode.quote!r}")
    return found


def _failure(good: Sequence[str], bad: Sequence[str], at_a: int, at_b: int, pair: Pair) -> FailureMode:
    if pair.contrast == "soft":
        return FailureMode(step_index=at_b, type="inefficient", quote=bad[at_b].strip(), fix=good[at_a].strip())
    for index in range(at_b, len(bad)):
        for claim in equalities(bad[index]):
            if not claim.holds and claim.text in bad[index]:
                fix = f"{claim.text.rpartition('=')[0].strip()} = {_decimal(claim.left)}"
                return FailureMode(step_index=index, type="arithmetic", quote=claim.text, fix=fix)
    early = final_answers(bad[at_b]) and not final_answers(good[at_a])
    return FailureMode(
        step_index=at_b,
        type="premature_answer" if early else "misread",
        quote=bad[at_b].strip(),
        fix=good[at_a].strip(),
    )


def _sound(path: Sequence[str]) -> bool:
    return all(claim.holds for step in path for claim in equalities(step))


def _decimal(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.6g}"
