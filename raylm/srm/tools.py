"""Deterministic branches: what can be counted about a prompt and a response without a model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable

from raylm.tasks.answers import final_answers
from raylm.tasks.arithmetic import equalities

Tool = Callable[[str, str], float | None]
"""Prompt and response to a number; None where it says nothing of them."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w'’-]+|\b\d[\d.,]*\b", re.MULTILINE)
_COMMON = frozenset(
    """a an and are as at be been but by can did do does for from had has have he her his i if in is it its me my no not
    of on or our she so that the their them then there these they this to was we were what when where which who why will
    with would you your""".split()  # noqa: SIM905 - a list of 60 strings is no clearer
)
"""Words that say nothing of a text's subject."""


def relevance(prompt: str, response: str) -> float | None:
    """Cosine of the two texts' counts of content words, damped by logarithms, in [0, 1]."""
    first, second = (_damped(content_words(text)) for text in (prompt, response))
    if not first or not second:
        return None
    dot = sum(weight * second[word] for word, weight in first.items() if word in second)
    return dot / (math.hypot(*first.values()) * math.hypot(*second.values()))


def coverage(prompt: str, response: str) -> float | None:
    """Share of the prompt's names and numbers that the response holds; None for a prompt without any."""
    wanted = _names(prompt)
    return len(wanted & _names(response, loose=True)) / len(wanted) if wanted else None


def support(prompt: str, response: str) -> float | None:
    """Share of the response's content words, names and numbers that the prompt holds: what it adds is unsupported."""
    said = set(content_words(response))
    return len(said & set(content_words(prompt))) / len(said) if said else None


def style(prompt: str, response: str) -> float | None:
    """Likeness of the two texts' manner in [0, 1]: lengths of words and sentences, case, punctuation, small words."""
    first, second = _manner(prompt), _manner(response)
    if first is None or second is None:
        return None
    return 1.0 - sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)


def arithmetic(prompt: str, response: str) -> float | None:
    """Share of the response's equalities that hold; None where it claims none."""
    claims = equalities(response)
    return sum(claim.holds for claim in claims) / len(claims) if claims else None


def format(prompt: str, response: str) -> float | None:
    """1 when exactly one final answer is stated and brackets and code fences are closed; each costs a third."""
    closed = all(response.count(a) == response.count(b) for a, b in ("()", "[]", "{}"))
    return (float(final_answers(response) == 1) + float(closed) + float(response.count("```") % 2 == 0)) / 3


def length(prompt: str, response: str) -> float | None:
    """Logarithm of the response's words."""
    return math.log1p(len(_WORD.findall(response)))


def repetition(prompt: str, response: str) -> float | None:
    """Share of the response's word triples that occurred before in it; more is worse."""
    words = [word.casefold() for word in _WORD.findall(response)]
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1.0 - len(set(triples)) / len(triples) if triples else 0.0


TOOLS: dict[str, Tool] = {
    tool.__name__: tool
    for tool in (relevance, coverage, support, style, arithmetic, format, length, repetition)
}  # fmt: skip
"""Those built in, by name; `retrieval` needs an index besides."""


def content_words(text: str) -> list[str]:
    """Words of a text that say something of its subject, in small letters."""
    words = (word.casefold() for word in _WORD.findall(text))
    return [word for word in words if word not in _COMMON]


def _damped(words: list[str]) -> dict[str, float]:
    return {word: 1.0 + math.log(count) for word, count in Counter(words).items()}


def _names(text: str, loose: bool = False) -> set[str]:
    """Names and numbers, in small letters; loose takes all words, since a name may begin a sentence."""
    found = (_WORD.findall(text) + re.findall(r"\d[\d.,]*", text)) if loose else _NAME.findall(text)
    return {word.casefold().rstrip(".,") for word in found} - _COMMON


def _manner(text: str) -> list[float] | None:
    words = _WORD.findall(text)
    if not words:
        return None
    sentences = max(1, len(re.findall(r"[.!?]+(?:\s|$)", text)))
    letters = [letter for letter in text if letter.isalpha()] or ["a"]
    marks = sum(not letter.isalnum() and not letter.isspace() for letter in text)
    return [
        min(1.0, sum(map(len, words)) / len(words) / 10),
        min(1.0, len(words) / sentences / 40),
        sum(letter.isupper() for letter in letters) / len(letters),
        min(1.0, 5 * marks / len(text)),
        sum(word.casefold() in _COMMON for word in words) / len(words),
    ]
