"""Reading responses: the answer they give, the number an answer states, and questions in a comparable form.

Everything here is linear in the length of its text, so that it can run beside an engine on any response.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from raylm.tasks.arithmetic import Equality, equalities, evaluate

__all__ = [
    "Equality",
    "equalities",
    "evaluate",
    "extract_answer",
    "final_answers",
    "gold_text",
    "normalize_question",
    "normalize_text",
    "parse_number",
]

_ANSWER_LINE = re.compile(r"[\W_]{0,12}(?:final\s+)?answer\W{0,4}?(?:\s+is\b\s*[:：]?|\s*[:：=])[*_ ]{0,4}(.*)", re.I)
_HASHES = re.compile(r"\s{0,12}####(.*)")
_SENTENCE = re.compile(r"\banswer\W{0,4}?(?:\s+is\b\s*[:：]?|\s*[:：=])\s*([^\s].*?)(?=\.(?:\s|$)|$)", re.I | re.M)
_BOXED = re.compile(r"\\f?boxed\s*\{")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)\.?|\.(?=\d))\d*(?:/\d+)?%?")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_SPACED_THOUSANDS = re.compile(r"(?<=\d)(?:\\,|\\!|\{,\}|[\u00a0\u2009\u202f])+(?=\d{3})")
_STATED = re.compile(
    r"(?P<sign>[-+]?) ?(?:[$€£¥] ?)?(?P<sign2>-?)"
    r"(?:(?P<whole>\d+) (?P<top>\d+)/(?P<bottom>\d+)"
    r"|(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)(?:[eE](?P<power>[-+]?\d{1,3})(?!\w))?"
    r"(?: ?/ ?(?P<over>\d+(?:\.\d+)?))?)"
)
_MAX_LENGTH, _MAX_DIGITS, _MAX_POWER = 4096, 1000, 100


def extract_answer(text: str) -> str:
    """The answer that a response gives, empty when it gives none.

    In this order: the last line `Answer: ...` (with nothing behind the colon: the lines up to the next empty one), the
    last `\\boxed{...}`, the last line `#### ...`, the last "the answer is ...", the last number of the text, its last
    line. The last two count only where no explicit answer was begun. `\\boxed{}`, `$`, emphasis and the full stop
    behind a number are taken off. Source: our choice.
    """
    lines = text.split("\n")
    for place in range(len(lines) - 1, -1, -1):
        found = _ANSWER_LINE.match(lines[place])
        if found:
            answer = _tidy(found.group(1)) or _tidy("\n".join(_block(lines, place + 1)))
            if answer:
                return answer
    boxed = _last_boxed(text)
    if boxed:
        return _tidy(boxed)
    for line in reversed(lines):
        found = _HASHES.match(line)
        if found and _tidy(found.group(1)):
            return _tidy(found.group(1))
    sentences = _SENTENCE.findall(text)
    if sentences:
        return _tidy(sentences[-1])
    if any(map(_is_explicit, lines)):
        return ""  # it was cut off where its answer begins
    numbers = _NUMBER.findall(text)
    if numbers:
        return _tidy(numbers[-1])
    return next((_tidy(line) for line in reversed(lines) if line.strip()), "")


def final_answers(text: str) -> int:
    """How many lines of a response state its final answer explicitly.

    Lines `Answer: ...`, `#### ...` and those with a `\\boxed{...}` count; only when there is none, sentences
    "the answer is ..." do.
    """
    lines = text.split("\n")
    return sum(map(_is_explicit, lines)) or len(_SENTENCE.findall(text))


def gold_text(answer: str) -> str:
    """A gold answer without the worked solution that GSM8K puts before `####`."""
    return answer.rpartition("####")[2].strip()


def parse_number(text: str) -> Fraction | None:
    """The one number that a short text states; None when it states none or several.

    Units, currency, `%`, thousands separators, a trailing dot and a left side `x =` are ignored (50% is 50); fractions,
    mixed numbers (1 1/2), `\\frac{1}{2}` and powers of ten (1e3) are read. More than 1000 digits are refused.
    """
    if len(text) > _MAX_LENGTH:
        return None
    plain = _FRACTION.sub(r"\1/\2", text.replace("−", "-").replace("\\$", "$").replace("\\%", "%"))
    plain = " ".join(_SPACED_THOUSANDS.sub("", plain).rpartition("=")[2].split())
    found = [match for match in _STATED.finditer(plain) if not _is_part(plain, match.start(), match.end())]
    if len(found) != 1 or _digits(plain) != _digits(found[0].group(0)):
        return None
    return _value(found[0])


def normalize_text(text: str) -> str:
    """Text without the differences that no reader would call one: case, spacing, width, quotes, a final full stop."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    stripped = folded.strip("*_`\"'“”‘’$ ").rstrip(". ").strip("*_`\"'“”‘’$ ")
    lone = re.fullmatch(r"\(?([a-z])\)?", stripped)  # (A), A) and A name the same choice
    return lone.group(1) if lone else stripped


def normalize_question(text: str) -> str:
    """A question without case, spacing and sentence punctuation, so that copies compare equal.

    Signs that can carry meaning (operators, brackets, digits and their separators) stay.
    """
    folded = unicodedata.normalize("NFKC", text).replace("−", "-").casefold()
    plain = re.sub(r"(?<!\d)[.,](?=\d)|(?<=\d)[.,](?!\d)|(?<!\d)[.,](?!\d)|[;:!?\"'’‘“”`]", " ", folded)
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)
    words = re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+|[^\w\s]|_+|\w", plain)
    return " ".join(words) or " ".join(text.split())


def _is_explicit(line: str) -> bool:
    return bool(_ANSWER_LINE.match(line) or _HASHES.match(line) or _BOXED.search(line))


def _value(match: re.Match[str]) -> Fraction | None:
    parts = match.groupdict()
    digits = "".join(filter(None, (parts["whole"], parts["number"], parts["top"], parts["bottom"], parts["over"])))
    power = int(parts["power"] or 0)
    if len(digits) > _MAX_DIGITS or abs(power) > _MAX_POWER:
        return None
    if parts["whole"]:
        if not int(parts["bottom"]):
            return None
        value = int(parts["whole"]) + Fraction(int(parts["top"]), int(parts["bottom"]))
    else:
        value = Fraction(parts["number"].replace(",", "").rstrip(".") or "0") * Fraction(10) ** power
        if parts["over"]:
            if not Fraction(parts["over"]):
                return None
            value /= Fraction(parts["over"])
    return -value if "-" in (parts["sign"] + parts["sign2"]) else value


def _digits(text: str) -> int:
    return sum(sign.isdecimal() for sign in text)


def _is_part(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is a piece of a name or of a longer number (x2, 1.2.3) and so states nothing."""
    before, after = text[start - 1 : start], text[end : end + 1]
    return (before.isalnum() or before in ("_", ".", "^")) or after == "_"


def _block(lines: list[str], start: int) -> list[str]:
    """The lines from `start` up to an empty one, empty ones at the start left out."""
    while start < len(lines) and not lines[start].strip():
        start += 1
    end = start
    while end < len(lines) and lines[end].rstrip("\r"):  # a line of spaces may be a row of a grid
        end += 1
    return lines[start:end]


def _tidy(answer: str) -> str:
    """An answer without the marks around it."""
    answer = answer.strip()
    boxed = _last_boxed(answer)
    if boxed:
        return _tidy(boxed)
    for _ in range(4):  # emphasis, code and mathematics nest; more than this is noise
        before = answer
        for mark in ("**", "__", "`", "$$", "$"):
            if len(answer) > 2 * len(mark) and answer.startswith(mark) and answer.endswith(mark):
                answer = answer[len(mark) : -len(mark)].strip()
        if answer.startswith(("\\(", "\\[")) and answer.endswith(("\\)", "\\]")):
            answer = answer[2:-2].strip()
        if re.search(r"[\d%)}$*`\]]\.$", answer):
            answer = answer[:-1].rstrip()
        answer = answer.removesuffix("**").removesuffix("\\\\").rstrip()
        if answer == before:
            break
    return answer


def _last_boxed(text: str) -> str:
    """What the last closed, non-empty `\\boxed{...}` holds, its braces balanced."""
    for match in reversed(list(_BOXED.finditer(text))[-20:]):
        depth = 0
        for index in range(match.end() - 1, len(text)):
            depth += {"{": 1, "}": -1}.get(text[index], 0)
            if depth == 0:
                content = text[match.end() : index].strip()
                if content:
                    return content
                break
    return ""
