"""Plain operations in a step (`12 - 5 = 7`): finding one, undoing it, and saying so in the same line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raylm.tasks.answers import equalities, final_answers

_NUMBER = r"-?[$€£¥]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_SIGNS = "-+*/×÷·−xX"
_OPERATION = re.compile(
    rf"(?P<first>{_NUMBER})(?P<rest>(?:\s?[{_SIGNS}]\s?{_NUMBER})+)(?P<equals>\s?=\s?)(?P<result>{_NUMBER})(?:\s[A-Za-z]+)?"
)
_TERM = re.compile(rf"(?P<before>\s?)(?P<sign>[{_SIGNS}])(?P<behind>\s?)(?P<number>{_NUMBER})")
_INVERSE = {"+": "-", "-": "+", "−": "+", "*": "/", "x": "/", "X": "/", "·": "/", "×": "÷", "/": "*", "÷": "×"}
_SAME = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})


@dataclass(frozen=True, slots=True)
class Operation:
    """An explicit equality with an expression without parentheses on its left and a number on its right."""

    text: str
    """As the step has it, a unit behind the result included."""
    left: str
    result: str
    end: int
    """Where it ends in its step."""
    numbers: tuple[str, ...]
    """Numbers of the left side, without currency signs and thousands separators."""
    signs: tuple[str, ...]
    """Operators of the left side, one of + - * /."""


def operations(step: str) -> list[Operation]:
    """The plain operations that a step claims, in order, whether they hold or not."""
    found: list[Operation] = []
    at = 0
    for claim in equalities(step):
        place = step.translate(_SAME).find(claim.text, at)
        if place < 0:
            continue  # written in LaTeX, or bold: nothing can be put behind it safely
        start = place - (step[place - 1 : place] in tuple("$€£¥"))
        text = step[start : place + len(claim.text)]
        match = _OPERATION.fullmatch(text)
        if match is None:
            continue
        at = place + len(claim.text)
        terms = list(_TERM.finditer(match["rest"]))
        numbers = [match["first"], *(term["number"] for term in terms)]
        found.append(
            Operation(
                text=text,
                left=match["first"] + match["rest"],
                result=match["result"],
                end=at,
                numbers=tuple(re.sub(r"[$€£¥,]", "", number) for number in numbers),
                signs=tuple(term["sign"].lower().replace("x", "*").translate(_SAME) for term in terms),
            )
        )
    return found


def inverse(operation: Operation) -> str:
    """The operation recomputed backwards: `12 - 5 = 7` as `7 + 5 = 12`; empty where that is not exact.

    The last term of a sum, or the last factor of a product, moves to the other side.
    """
    match = _OPERATION.fullmatch(operation.text)
    if match is None:
        return ""
    terms = list(_TERM.finditer(match["rest"]))
    sums = [index for index, term in enumerate(terms) if term["sign"] in "+-−"]
    cut = terms[sums[-1] if sums else -1]
    kept = match["first"] + match["rest"][: cut.start()]
    moved = match["rest"][cut.start("behind") :]
    check = f"{operation.result}{cut['before']}{_INVERSE[cut['sign']]}{moved}{match['equals']}{kept}"
    claims = equalities(check)
    return check if len(claims) == 1 and claims[0].holds else ""


def annotate(step: str, operation: Operation, joint: str, check: str, avoided: str = "") -> str:
    """A step with a check of one of its operations, and what to avoid, put where the line stays easy to read.

    Args:
        step: a step that gives no final answer.
        operation: one of its operations.
        joint: what connects the operation with its check, such as ", since ".
        check: an equality, may be empty.
        avoided: what the operation is not, may be empty.

    Raises:
        ValueError: the step gives a final answer, which must stay as it is.
    """
    if final_answers(step):
        raise ValueError("a step with the final answer must stay as it is")
    head = step[: operation.end] + (f" (not {avoided})" if avoided else "")
    tail = step[operation.end :]
    if not check:
        return head + tail
    if tail.strip() in ("", "."):
        return f"{head}{joint}{check}{tail}"
    body = tail.rstrip()
    stop = "" if body[-1] in ".!?:;" else "."
    return f"{head}{body}{stop} Check: {check}.{tail[len(body) :]}"
