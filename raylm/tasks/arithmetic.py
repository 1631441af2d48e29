"""The arithmetic that a text claims: every explicit `a op b = c`, and whether it holds.

A filter on training text must not drop what is right, so only what is certainly a claim about numbers is read:
algebra, words inside an expression ("half of 3 + 5"), and sides in different units are left alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Equality:
    """An explicit equality that a text claims."""

    text: str
    left: Fraction
    right: Fraction
    holds: bool
    """Both sides are equal; a right side with decimals may be the left one rounded or cut to as many."""


_TOKEN = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+|\*\*|[^\W\d_]+|\S", re.UNICODE)
_BULLET = re.compile(r"\s*(?:\d{1,3}[.)]|[*•–])\s+")
_SAME = str.maketrans({"×": "*", "·": "*", "∙": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})
_LATEX = (
    *((sign, " $ ") for sign in ("\\(", "\\)", "\\[", "\\]")),
    ("\\times", "*"),
    ("\\cdot", "*"),
    ("\\div", "/"),
    ("\\left", ""),
    ("\\right", ""),
    ("{,}", ","),
    ("\\%", "%"),
)
_BOLD = re.compile(r"(?<![\w)])\*\*(?=\S)([^*\n]+)(?<=\S)\*\*(?!\w)")
_FRAC = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_CURRENCY = frozenset("$€£¥")
_OPERATORS = frozenset(("+", "-", "*", "/", "^", "**"))
_JOINED = frozenset(
    ("of", "times", "plus", "minus", "by", "than", "over", "half", "twice", "double", "triple", "mod", "root")
)
"""Words that make the number beside them part of a larger expression."""
_NO_UNIT = frozenset(
    """and or so is are was were then to but we get gets gives with from if when because since therefore thus that which
    now has have i he she it they the a an for in on at as also""".split()  # noqa: SIM905 - a list of 38 strings is no clearer
)
"""Words that follow a number without being its unit."""
_BREAKS = frozenset(".,;:?!\"'“”‘’_`<>«»\\→⇒|#~&")
_MAX_TOKENS, _MAX_DIGITS, _MAX_BITS, _MAX_DEPTH = 200, 60, 4096, 40


def equalities(text: str) -> list[Equality]:
    """Every equality of a text whose sides are numbers and at least one of which is computed, in order.

    `a = b = c` claims a = b and b = c. `x` between numbers multiplies; `%` is a hundredth or a unit, whichever makes
    the equality hold; a unit may follow a number, and where the sides name different ones only a true equality counts.
    """
    found: list[Equality] = []
    for line in _plain(text).split("\n"):
        for run in _runs(line, _tokens(line)):
            found += _claims(run)
    return found


def evaluate(expression: str) -> Fraction | None:
    """The value of an expression of + - * / ^ x × ÷ % and parentheses; None when it has none or is too large.

    Nothing is executed: at most 200 tokens of 60 digits, and results of 4096 bits.
    """
    tokens = _tokens(_plain(expression))
    if any(token.kind not in ("number", "op") for token in tokens):
        return None
    return _evaluate([token.text for token in tokens], percent=True)


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    kind: str
    """number, op (operators, parentheses, percent), equals, unit (a word behind a number), word, break, or other."""
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Run:
    """Tokens of numbers, operators and equals signs in a row, and whether an expression goes on beyond its ends."""

    tokens: list[_Token]
    line: str
    open_left: bool
    open_right: bool
    bullet: bool
    """A minus before the first number may as well be a bullet."""


def _plain(text: str) -> str:
    for old, new in _LATEX:
        text = text.replace(old, new)
    text = _BOLD.sub(r"\1", _FRAC.sub(r"((\1)/(\2))", text))
    return text.translate(_SAME)


def _tokens(line: str) -> list[_Token]:
    bullet = _BULLET.match(line)
    start = bullet.end() if bullet else 0
    raw = [(match.group(0), match.start(), match.end()) for match in _TOKEN.finditer(line, start)]
    raw = [item for item in raw if item[0] not in _CURRENCY]
    tokens: list[_Token] = []
    for place, (text, begin, end) in enumerate(raw):
        after = raw[place + 1][0] if place + 1 < len(raw) else ""
        kind = _kind(text, begin, tokens, after, line)
        tokens.append(_Token("*" if text in ("x", "X") and kind == "op" else text, kind, begin, end))
    return tokens


def _kind(text: str, begin: int, before: list[_Token], after: str, line: str) -> str:
    last = before[-1] if before else None
    attached = last is not None and begin == last.end
    behind_value = last is not None and (last.kind in ("number", "unit") or last.text in (")", "%"))
    if text[0].isdigit() or (text[0] == "." and len(text) > 1):
        return "number"
    if text == "(" and behind_value and not attached:
        return "break"  # 8 (apples)
    if text in _OPERATORS or text in ("(", ")", "%"):
        return "op"
    if text == "=":
        return "equals"
    if text in ("x", "X") and behind_value and after and (after[0].isdigit() or after[0] in ".(-"):
        return "op"
    if text.isalpha():
        called = line[begin + len(text) : begin + len(text) + 1] == "("  # log(2)
        if called or text.lower() in _JOINED or (attached and behind_value and len(text) == 1):
            return "other"  # half of 3, log(2), 3y
        return "unit" if last is not None and last.kind == "number" and text.lower() not in _NO_UNIT else "word"
    if text in _BREAKS and attached and behind_value and line[begin + 1 : begin + 2].isdigit():
        return "other"  # 3:4
    if text == "!" and attached and behind_value and after and after[0] in "+-*/=^":
        return "other"  # 5! / 4
    return "break" if text in _BREAKS else "other"


def _runs(line: str, tokens: list[_Token]) -> Iterator[_Run]:
    """Cut a line's tokens where no expression can go on."""
    start = 0
    while start < len(tokens):
        if tokens[start].kind not in ("number", "op", "equals"):
            start += 1
            continue
        end = start + 1
        while end < len(tokens) and _goes_on(tokens, end):
            end += 1
        run = tokens[start:end]
        before = tokens[start - 1] if start else None
        after = tokens[end] if end < len(tokens) else None
        named = run[0].text in _OPERATORS and before is not None and _names_value(before)
        yield _Run(
            run,
            line,
            open_left=named or (before is not None and before.kind not in ("word", "break")),
            open_right=after is not None and after.kind in ("other", "number"),
            bullet=run[0].text == "-" and before is None,
        )
        start = end


def _names_value(token: _Token) -> bool:
    """Whether an operator behind this word continues an expression (y + 3) and is no sign (and -3)."""
    return token.kind == "word" and (len(token.text) == 1 or token.text.lower() not in _NO_UNIT)


def _goes_on(tokens: list[_Token], place: int) -> bool:
    """Whether the token at `place` belongs to the run before it."""
    token, last = tokens[place], tokens[place - 1]
    if token.kind == "unit":
        return True
    if token.kind == "number":
        return last.kind != "number" and last.text != ")" and last.kind != "unit" and last.text != "%"
    return token.kind in ("op", "equals")


def _claims(run: _Run) -> Iterator[Equality]:
    sides: list[list[_Token]] = [[]]
    for token in run.tokens:
        if token.kind == "equals":
            sides.append([])
        else:
            sides[-1].append(token)
    for place, (left, right) in enumerate(itertools.pairwise(sides)):
        if not left or not right:
            continue
        if (place == 0 and run.open_left) or (place == len(sides) - 2 and run.open_right):
            continue
        if len(left) + len(right) > _MAX_TOKENS:
            continue
        claim = _claim(_balanced(left), _balanced(right), run.line, bullet=place == 0 and run.bullet)
        if claim is not None:
            yield claim


def _claim(left: list[_Token], right: list[_Token], line: str, bullet: bool) -> Equality | None:
    plain_left, plain_right = ([token.text for token in side if token.kind != "unit"] for side in (left, right))
    if not (_computes(plain_left) or _computes(plain_right)):
        return None
    if not plain_left or not plain_right:
        return None
    readings = [(plain_left, plain_right, percent) for percent in (True, False)]
    if bullet:
        readings += [(plain_left[1:], plain_right, True)]
    text = line[left[0].start : right[-1].end]
    claims = []
    for first, second, percent in readings:
        values = _evaluate(first, percent), _evaluate(second, percent)
        if values[0] is not None and values[1] is not None:
            claims.append(Equality(text, values[0], values[1], _equal(values[0], values[1], second)))
    if not claims:
        return None
    true = next((claim for claim in claims if claim.holds), None)
    if true is None and _units(left) and _units(right) and _units(left) != _units(right):
        return None  # 3 * 1 hours = 180 minutes
    if true is None and len(_units(left)) > 1:
        return None  # 2 feet + 3 inches = 27
    return true or claims[0]


def _balanced(side: list[_Token]) -> list[_Token]:
    """A side without the parentheses at its ends that belong to the sentence: (3 + 4 = 7)."""
    while side and side[0].text == "(" and _depth(side) > 0:
        side = side[1:]
    while side and side[-1].text == ")" and _depth(side) < 0:
        side = side[:-1]
    return side


def _depth(side: list[_Token]) -> int:
    return sum((token.text == "(") - (token.text == ")") for token in side)


def _computes(side: list[str]) -> bool:
    return any(token in _OPERATORS for token in side[1:])


def _units(side: list[_Token]) -> set[str]:
    return {token.text.lower().removesuffix("s") for token in side if token.kind == "unit"}


def _equal(left: Fraction, right: Fraction, written: list[str]) -> bool:
    if left == right:
        return True
    literal = [token for token in written if token not in ("-", "%")]
    if len(literal) != 1 or "." not in literal[0]:
        return False
    digits = len(literal[0].partition(".")[2]) + (2 if "%" in written else 0)
    return abs(left - right) < Fraction(1, 10**digits)


def _evaluate(tokens: list[str], percent: bool) -> Fraction | None:
    if not tokens or len(tokens) > _MAX_TOKENS or any(len(token) > _MAX_DIGITS for token in tokens):
        return None
    try:
        parser = _Parser(tokens, percent)
        value = parser.sum(0)
    except (ArithmeticError, ValueError, IndexError):
        return None
    return value if parser.place == len(tokens) else None


class _Parser:
    """Recursive descent over tokens; raises IndexError, ValueError or ArithmeticError where there is no value."""

    def __init__(self, tokens: list[str], percent: bool) -> None:
        self.tokens, self.percent, self.place = tokens, percent, 0

    def peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self) -> str:
        self.place += 1
        return self.tokens[self.place - 1]

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.peek() in ("+", "-"):
            sign = self.take()
            operand = self.product(depth)
            value = _bounded(value + operand if sign == "+" else value - operand)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.signed(depth)
        while self.peek() in ("*", "/") or self.peek() == "(":
            sign = self.take() if self.peek() != "(" else "*"  # 2(3 + 4)
            operand = self.signed(depth)
            value = _bounded(value * operand if sign == "*" else value / operand)
        return value

    def signed(self, depth: int) -> Fraction:
        if self.peek() in ("+", "-"):
            if depth > _MAX_DEPTH:
                raise ValueError("too deep")
            sign = self.take()
            value = self.signed(depth + 1)
            return -value if sign == "-" else value
        return self.power(depth)

    def power(self, depth: int) -> Fraction:
        base = self.atom(depth)
        if self.peek() not in ("^", "**"):
            return base
        self.take()
        exponent = self.signed(depth + 1)
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator != 1 or abs(exponent) * bits > _MAX_BITS:
            raise ValueError("no rational number of bounded size")
        return base ** int(exponent)

    def atom(self, depth: int) -> Fraction:
        token = self.take()
        if token == "(":
            if depth > _MAX_DEPTH:
                raise ValueError("too deep")
            value = self.sum(depth + 1)
            if self.take() != ")":
                raise ValueError("unbalanced")
        elif token[0].isdigit() or token[0] == ".":
            value = Fraction(token.replace(",", ""))
        else:
            raise ValueError("no number")
        if self.peek() == "%":
            self.take()
            value = value / 100 if self.percent else value
        return value


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise ValueError("too large")
    return value
