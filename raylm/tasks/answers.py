"""Reading responses: the answer they give, the equalities they claim, and questions in a comparable form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_ANSWER_LINE = re.compile(r"^\W*(?:final\s+)?answer\s*(?:is\s*:?|:|=)\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
_HASHES = re.compile(r"^####\s*(.+?)\s*$", re.MULTILINE)
_SENTENCE = re.compile(r"\banswer\s+is:?\s+(.+?)(?=\.(?:\s|$)|\n|$)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?")


def extract_answer(text: str) -> str:
    """The answer that a response gives, empty when it gives none.

    In this order: the last `\\boxed{...}`, the last line `Answer: ...`, the last line `#### ...`, the last
    "the answer is ...", the last number of the text.
    """
    boxed = _last_boxed(text)
    if boxed:
        return boxed
    for pattern in (_ANSWER_LINE, _HASHES, _SENTENCE):
        found = pattern.findall(text)
        if found:
            return found[-1].strip().strip("*").strip()
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else ""


def final_answers(text: str) -> int:
    """How many explicit final answers a response has."""
    return len(_ANSWER_LINE.findall(text)) + len(_HASHES.findall(text)) + text.count("\\boxed{")


def parse_number(text: str) -> Fraction | None:
    """The number that a short text states, units, separators, % and $ aside; None when it states none or several."""
    cleaned = text.replace("−", "-").replace("\\$", "").replace("$", "").strip().rstrip(".").strip()
    found = _NUMBER.findall(cleaned)
    if len(found) != 1:
        return None
    top, _, bottom = found[0].translate(str.maketrans("", "", ",$%")).partition("/")
    if len(top) + len(bottom) > 60 or (bottom and not int(bottom)):
        return None
    return Fraction(top) / (Fraction(bottom) if bottom else 1)


@dataclass(frozen=True, slots=True)
class Equality:
    """An explicit equality that a text claims."""

    text: str
    left: Fraction
    right: Fraction

    @property
    def holds(self) -> bool:
        """Whether both sides are equal; results that were rounded to the digits shown count as equal."""
        if self.left == self.right:
            return True
        digits = len(self.text.rpartition(".")[2]) if "." in self.text.rpartition("=")[2] else 0
        return digits > 0 and abs(self.left - self.right) <= Fraction(1, 2 * 10**digits)


_TERM = r"\(*\s*-?\s*\$?\d[\d,]*(?:\.\d+)?\s*%?\s*\)*"
_CLAIM = re.compile(
    rf"(?<![\w.])({_TERM}(?:\s*[-+*/x×÷]\s*{_TERM})+)\s*=\s*\$?\s*(-?\s*\$?\d[\d,]*(?:\.\d+)?)(?![\d\w])"
)


def equalities(text: str) -> list[Equality]:
    """Every `a op b [op c ...] = d` in a text whose left side can be computed, in order."""
    found = []
    for match in _CLAIM.finditer(text.replace("−", "-")):
        left = evaluate(match.group(1))
        if left is not None:
            right = Fraction(re.sub(r"[\s,$]", "", match.group(2)))
            found.append(Equality(match.group(0).strip(), left, right))
    return found


def evaluate(expression: str) -> Fraction | None:
    """The value of an arithmetic expression of + - * / and parentheses; None when it has none."""
    plain = expression.translate(str.maketrans({"×": "*", "x": "*", "÷": "/", "−": "-", ",": None, "$": None}))
    tokens = re.findall(r"\d+(?:\.\d+)?|[-+*/()]", plain)
    if len(tokens) > 200 or any(len(token) > 40 for token in tokens):
        return None
    try:
        value, rest = _sum(tokens)
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return value if not rest else None


def normalize_question(text: str) -> str:
    """A question without case, punctuation and spacing, so that copies compare equal."""
    return " ".join(re.findall(r"[^\W_]+|[-+*/=<>]", text.lower()))


def _sum(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, rest = _product(tokens)
    while rest and rest[0] in "+-":
        sign = rest[0]
        operand, rest = _product(rest[1:])
        value = value + operand if sign == "+" else value - operand
    return value, rest


def _product(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, rest = _factor(tokens)
    while rest and rest[0] in "*/":
        sign = rest[0]
        operand, rest = _factor(rest[1:])
        value = value * operand if sign == "*" else value / operand
    return value, rest


def _factor(tokens: list[str]) -> tuple[Fraction, list[str]]:
    if tokens[0] == "-":
        value, rest = _factor(tokens[1:])
        return -value, rest
    if tokens[0] == "(":
        value, rest = _sum(tokens[1:])
        if rest[0] != ")":
            raise ValueError("unbalanced")
        return value, rest[1:]
    return Fraction(tokens[0]), tokens[1:]


def _last_boxed(text: str) -> str:
    start = text.rfind("\\boxed{")
    if start < 0:
        return ""
    depth = 0
    for index in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : index].strip()
    return ""
