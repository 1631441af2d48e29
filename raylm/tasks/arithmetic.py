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

from raylm.tasks.expression import MAX_TOKENS, value


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
_FRACTION = re.compile(r"[\d.,]+/[\d.,]+")
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
_HUNDREDTHS = frozenset(("cent", "percent"))
_BREAKS = frozenset(".,;:?!\"'“”‘’_`<>«»\\→⇒|#~&")


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
    return value([token.text for token in tokens])


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
    named: bool
    """A word stands before the first number, which may be its label (Day 3)."""
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
    if text[0].isdecimal() or (text[0] == "." and len(text) > 1):
        return "other" if text[0] == "0" and text[1:2].isdecimal() else "number"  # 0730 is a time
    if text == "(" and behind_value and not attached:
        return "break"  # 8 (apples)
    if text in _OPERATORS or text in ("(", ")", "%"):
        return "op"
    if text == "=":
        return "equals"
    if text in ("x", "X") and behind_value and after and (after[0].isdecimal() or after[0] in ".("):
        return "op"
    if text.isalpha():
        return _word_kind(text, last, attached, after, line[begin + len(text) : begin + len(text) + 1])
    if text in _BREAKS and attached and behind_value and line[begin + 1 : begin + 2].isdecimal():
        return "other"  # 3:4
    if text == "!" and attached and behind_value and after and after[0] in "+-*/=^":
        return "other"  # 5! / 4
    return "break" if text in _BREAKS else "other"


def _word_kind(text: str, last: _Token | None, attached: bool, after: str, next_sign: str) -> str:
    behind_number = last is not None and last.kind == "number"
    factor = last is not None and attached and (behind_number or last.text == ")")
    letter = len(text) == 1 and (factor or (behind_number and (after in _OPERATORS or after == "=")))
    if next_sign == "(" or text.lower() in _JOINED or letter:
        return "other"  # log(2), half of 3, 3y
    return "unit" if behind_number and text.lower() not in _NO_UNIT else "word"


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
        continues = run[0].text in _OPERATORS and before is not None and _names_value(before)
        yield _Run(
            run,
            line,
            open_left=continues or (before is not None and before.kind not in ("word", "break")),
            open_right=after is not None and after.kind in ("other", "number"),
            named=before is not None and before.kind == "word",
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
        if len(left) + len(right) > MAX_TOKENS:
            continue
        first = left if place else _without(left, "(", 0)  # (3 + 4 = 7)
        second = right if place < len(sides) - 2 else _without(right, ")", -1)
        claim = _claim(first, second, run, place)
        if claim is not None:
            yield claim


def _claim(left: list[_Token], right: list[_Token], run: _Run, place: int) -> Equality | None:
    """The claim that two sides are equal: in the reading that makes it true, if there is one."""
    if not (_computes(left) or _computes(right)):
        return None
    text = run.line[left[0].start : right[-1].end]
    claims = []
    for first, second, percent in _readings(left, right, bullet=place == 0 and run.bullet):
        values = value(first, percent), value(second, percent)
        if values[0] is not None and values[1] is not None:
            claims.append(Equality(text, values[0], values[1], _equal(values[0], values[1], second)))
    true = next((claim for claim in claims if claim.holds), None)
    if true is None and (not claims or _is_doubtful(left, right, claims[0], named=place == 0 and run.named)):
        return None
    return true or claims[0]


def _readings(left: list[_Token], right: list[_Token], bullet: bool) -> Iterator[tuple[list[str], list[str], bool]]:
    """Ways to read two sides, as texts and whether `%` is a hundredth."""
    first, second = _texts(left), _texts(right)
    yield first, second, True
    yield first, second, False
    yield _tight_fractions(left), _tight_fractions(right), True
    if bullet:
        yield first[1:], second, True
    if _units(right) & _HUNDREDTHS and not _units(left):
        yield first, ["(", *second, ")", "/", "100"], True  # 2.50 - 2.24 = 26 cents


def _is_doubtful(left: list[_Token], right: list[_Token], claim: Equality, named: bool) -> bool:
    """Whether what does not hold may be no claim about these numbers."""
    units = _units(left), _units(right)
    if len(units[0]) > 1 or (units[0] and units[1] and units[0] != units[1]):
        return True  # 3 * 1 hours = 180 minutes
    if not _computes(left) and (units[0] or named):
        return True  # 2 hours = 2 * 60, Day 3 = 2 * 5; below, a third of them: 1/3 = 28
    return _FRACTION.fullmatch(claim.text.partition("=")[0].rstrip()) is not None and claim.left < 1 < claim.right


def _texts(side: list[_Token]) -> list[str]:
    return [token.text for token in side if token.kind != "unit"]


def _tight_fractions(side: list[_Token]) -> list[str]:
    """The texts of a side in which fractions without spaces bind first: 60 / 3/4 is 80."""
    texts: list[str] = []
    place = 0
    while place < len(side):
        three = side[place : place + 3]
        if _FRACTION.fullmatch("".join(token.text for token in three)) and three[0].end + 1 == three[2].start:
            texts += ["(", *(token.text for token in three), ")"]
            place += 3
            continue
        if side[place].kind != "unit":
            texts.append(side[place].text)
        place += 1
    return texts


def _without(side: list[_Token], sign: str, end: int) -> list[_Token]:
    """A side without the parentheses at one end that belong to the sentence."""
    while side and side[end].text == sign and sum((item.text == "(") - (item.text == ")") for item in side):
        side = side[1:] if end == 0 else side[:-1]
    return side


def _computes(side: list[_Token]) -> bool:
    return any(token.text in _OPERATORS for token in side[1:])


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
