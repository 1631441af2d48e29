"""The value of a small arithmetic expression, exactly and in bounded time: nothing is executed."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

MAX_TOKENS = 200
_MAX_DIGITS, _MAX_BITS, _MAX_DEPTH = 60, 4096, 40


def value(tokens: Sequence[str], percent: bool = True) -> Fraction | None:
    """The value of an expression's tokens; None when it has none or is too large.

    Args:
        tokens: numbers, `+ - * / ^ **`, parentheses and `%`.
        percent: `%` divides by a hundred; False ignores it.
    """
    if not tokens or len(tokens) > MAX_TOKENS or any(len(token) > _MAX_DIGITS for token in tokens):
        return None
    try:
        parser = _Parser(tokens, percent)
        result = parser.sum(0)
    except (ArithmeticError, ValueError, IndexError):
        return None
    return result if parser.place == len(tokens) else None


class _Parser:
    """Recursive descent over tokens; raises IndexError, ValueError or ArithmeticError where there is no value."""

    def __init__(self, tokens: Sequence[str], percent: bool) -> None:
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
        elif token[0].isdecimal() or token[0] == ".":
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
