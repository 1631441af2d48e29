"""Writing one clean chain from what a pair teaches."""

from __future__ import annotations

import re
from typing import Literal, Protocol

from raylm.crps.pairs import Pair
from raylm.crps.reflect import Critique, steps
from raylm.records import Tree
from raylm.tasks.answers import equalities

Pitfall = Literal["none", "check", "full"]

_OPERATION = re.compile(r"(-?\d+(?:\.\d+)?) ([-+*/]) (-?\d+(?:\.\d+)?) = (-?\d+(?:\.\d+)?)")
_INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}


class Synthesizer(Protocol):
    """Writes the response of a training chain. It is given neither the gold answer nor the verdicts."""

    name: str

    def write(self, tree: Tree, pair: Pair, critique: Critique) -> str: ...


class StructuralSynthesizer:
    """Grafts: the shared prefix, the good path's step at the pivot with its check, the good path's continuation."""

    name = "structural"

    def __init__(self, pitfall: Pitfall) -> None:
        self.pitfall = pitfall

    def write(self, tree: Tree, pair: Pair, critique: Critique) -> str:
        """The chain's text. What is added at the pivot depends on `pitfall` and on the kind of failure.

        `none` adds nothing; `check` recomputes the pivot's operation by its inverse where the bad path miscalculated;
        `full` names the avoided result instead.
        """
        parts = steps(tree, pair.anchor)
        failure = critique.failure_modes[0]
        if self.pitfall != "none" and failure.type == "arithmetic":
            place = min(failure.step_index, len(parts) - 1)
            parts[place] = self._remark(parts[place], failure.quote)
        return "".join(parts)

    def _remark(self, step: str, quote: str) -> str:
        found = _OPERATION.search(step)
        if found is None:
            return step
        left, sign, right, result = found.groups()
        if self.pitfall == "full":
            avoided = quote.rpartition("=")[2].strip()
            return step.replace(found.group(), f"{found.group()}, not {avoided}", 1) if avoided != result else step
        check = f"{result} {_INVERSE[sign]} {right} = {left}"
        if not all(claim.holds for claim in equalities(check)):  # a rounded result has no exact inverse
            return step
        return step.replace(found.group(), f"{found.group()}, check {check}", 1)
