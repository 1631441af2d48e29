"""Writing one clean chain from what a pair teaches."""

from __future__ import annotations

import hashlib
from typing import Literal, Protocol

from raylm.crps.operations import Operation, annotate, inverse, operations
from raylm.crps.pairs import Pair
from raylm.crps.reflect import Critique, FailureMode
from raylm.tasks.answers import final_answers

Pitfall = Literal["none", "check", "full"]

JOINTS = (", since ", ", because ")
NOT_YET = ("The answer needs one more step: ", "There is one more step: ")


class Synthesizer(Protocol):
    """Writes the response of a training chain. A pair holds no gold answer."""

    name: str

    def write(self, pair: Pair, critique: Critique) -> str: ...


class StructuralSynthesizer:
    """Grafts: the shared prefix, the good step at the pivot with the reason for it, the best continuation.

    A reader sees one chain of thought in the explorer's own words and format; nothing tells that another was tried.
    """

    name = "structural"

    def __init__(self, pitfall: Pitfall) -> None:
        self.pitfall = pitfall

    def write(self, pair: Pair, critique: Critique) -> str:
        """The chain's text.

        `none` adds nothing. `check` recomputes one operation by its inverse: the one that the bad path got wrong where
        the good path has it too, else the pivot's. `full` also says what that operation is not, or that an answer
        would come too early. Soft pairs get no remark: that the chain is short is what they teach.
        """
        steps = list(pair.anchor.steps)
        if self.pitfall == "none" or pair.contrast == "soft" or not critique.failure_modes:
            return pair.anchor.text
        failure = critique.failure_modes[0]
        found = _operation_to_check(pair, failure)
        if found is None:
            return pair.anchor.text
        place, operation = found
        step = steps[place]
        choice = hashlib.sha256(f"{pair.question}\n{step}".encode()).digest()[0]
        avoided = _avoided(pair, operation, failure) if self.pitfall == "full" else ""
        steps[place] = annotate(step, operation, JOINTS[choice % len(JOINTS)], inverse(operation), avoided)
        if self.pitfall == "full" and failure.type == "premature_answer" and place == pair.shared:
            steps[place] = NOT_YET[choice % len(NOT_YET)] + steps[place]
        return "".join(steps)


def _operation_to_check(pair: Pair, failure: FailureMode) -> tuple[int, Operation] | None:
    """The step and operation of the good path that a remark belongs to; the final answer never gets one."""
    steps = pair.anchor.steps
    free = {index: operations(step) for index, step in enumerate(steps) if not final_answers(step)}
    after = [index for index in free if index >= pair.shared and free[index]]
    for index in after:
        for operation in free[index]:
            if any(operation.left == failed.left for failed in operations(failure.quote)):
                return index, operation
    before = [index for index in free if index < pair.shared and free[index]]
    nearest = after[:1] or before[-1:]
    return (nearest[0], free[nearest[0]][0]) if nearest else None


def _avoided(pair: Pair, operation: Operation, failure: FailureMode) -> str:
    """What the bad path has in place of an operation: another result, or another left side."""
    for failed in operations(failure.quote):
        if failed.left == operation.left:
            return failed.result if failed.result != operation.result else ""
        if failure.type in ("misread", "wrong_theorem") and failure.step_index == pair.shared:
            return failed.left
    return ""
