"""Writing one clean chain from what a pair teaches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from raylm.crps.operations import Operation, annotate, inverse, operations
from raylm.crps.pairs import Pair
from raylm.crps.reflect import Critique, FailureMode
from raylm.tasks.answers import final_answers

Pitfall = Literal["none", "check", "full"]

JOINTS = (", since ", ", because ")
NOT_YET = ("The answer needs one more step: ", "There is one more step: ")


@dataclass(frozen=True, slots=True)
class Draft:
    """A written chain before any check."""

    text: str
    fault: str = ""
    """Why it is none: `cut_off` or `prompt_too_long`; empty for one that is complete."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0


class Synthesizer(Protocol):
    """Writes the response of a training chain. A pair holds no gold answer."""

    name: str

    async def write(self, pair: Pair, critique: Critique, name: str) -> Draft:
        """Write one; `name` tells the pair from all others, for seeds."""
        ...


class StructuralSynthesizer:
    """Grafts: the shared prefix, the good step at the pivot with the reason for it, the best continuation.

    A reader sees one chain of thought in the explorer's own words and format; nothing tells that another was tried.
    """

    name = "structural"

    def __init__(self, pitfall: Pitfall) -> None:
        self.pitfall = pitfall

    async def write(self, pair: Pair, critique: Critique, name: str) -> Draft:
        """See `graft`; it costs no tokens."""
        return Draft(self.graft(pair, critique))

    def graft(self, pair: Pair, critique: Critique) -> str:
        """The chain's text. Where the paths part, and what failed, is what the critique says.

        `none` adds nothing. `check` recomputes one operation by its inverse: the one that the bad path got wrong where
        the good path has it too, else the pivot's. `full` also says what that operation is not, or that an answer
        would come too early. Soft pairs get no remark: that the chain is short is what they teach.
        """
        steps = list(pair.anchor.steps)
        if self.pitfall == "none" or critique.contrast_type == "soft":
            return pair.anchor.text
        start = min(critique.divergence_step_index, len(steps) - 1)
        failure = critique.failure_modes[0] if critique.failure_modes else None
        found = _operation_to_check(steps, start, failure)
        if found is None:
            return pair.anchor.text
        place, operation = found
        step = steps[place]
        choice = hashlib.sha256(f"{pair.question}\n{step}".encode()).digest()[0]
        full = self.pitfall == "full" and failure is not None
        avoided = _avoided(start, operation, failure) if full and failure else ""
        steps[place] = annotate(step, operation, JOINTS[choice % len(JOINTS)], inverse(operation), avoided)
        if full and failure and failure.type == "premature_answer" and place == start:
            steps[place] = NOT_YET[choice % len(NOT_YET)] + steps[place]
        return "".join(steps)


def correction(pair: Pair, critique: Critique) -> str:
    """A correction in the form of LEMA: the first mistake, what mends it, and the right solution."""
    failure = critique.failure_modes[0]
    quote, fix = failure.quote.strip().rstrip("."), failure.fix.strip().rstrip(".")
    if final_answers(quote):
        told = "it answers too early" if failure.type == "premature_answer" else "its result is not what was found"
    else:
        told = f"{quote!r} should be {fix!r}" if fix and not final_answers(fix) else f"{quote!r} does not help"
    return f"Step {failure.step_index + 1} is the first to go wrong: {told}. Corrected:\n{pair.anchor.text.strip()}"


def _operation_to_check(steps: Sequence[str], start: int, failure: FailureMode | None) -> tuple[int, Operation] | None:
    """The step and operation of the good path that a remark belongs to; the final answer never gets one."""
    free = {index: operations(step) for index, step in enumerate(steps) if not final_answers(step)}
    after = [index for index in free if index >= start and free[index]]
    wrong = operations(failure.quote) if failure else []
    for index in after:
        for operation in free[index]:
            if any(operation.left == failed.left for failed in wrong):
                return index, operation
    before = [index for index in free if index < start and free[index]]
    nearest = after[:1] or before[-1:]
    return (nearest[0], free[nearest[0]][0]) if nearest else None


def _avoided(start: int, operation: Operation, failure: FailureMode) -> str:
    """What the bad path has in place of an operation: another result, or another left side."""
    for failed in operations(failure.quote):
        if failed.left == operation.left:
            return failed.result if failed.result != operation.result else ""
        if failure.type in ("misread", "wrong_theorem") and failure.step_index == start:
            return failed.left
    return ""
