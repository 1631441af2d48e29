"""What a chain must pass besides the verifier, and how copies and leaks are found."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from raylm.crps.config import FilterConfig
from raylm.tasks.answers import equalities, final_answers, normalize_question

_META = re.compile(
    r"\b(?:trajector(?:y|ies)|rollouts?|critiques?|(?:anchor|negative|wrong|incorrect|bad) (?:path|solution|attempt)s?"
    r"|(?:gold|reference|ground[- ]truth) (?:answer|solution)s?|step \d+ (?:of|in) (?:the )?(?:\w+ )?(?:path|solution)"
    r"|(?:first|second|other|previous) (?:path|attempt)|(?-i:(?:[Pp]ath|[Ss]olution|[Aa]ttempt|[Cc]hain) [AB]))\b",
    re.IGNORECASE,
)
_PERMUTATIONS = 128
_MARGIN = 0.2
"""By how much 128 permutations may underestimate a similarity: more than four standard deviations."""
_TEMPLATE_QUESTIONS = 8
"""Questions of one source from which on their common beginning and end count as its template."""

Words = Sequence[str]


def fault(text: str, question: str, config: FilterConfig) -> str:
    """Why a response must not be trained on, empty when it may: one of
    `final_answers`, `meta_language`, `arithmetic`, `steps`.

    Words that the question itself uses are no meta-language: a problem may be about trajectories.
    """
    if final_answers(text) != 1:
        return "final_answers"
    asked = question.casefold()
    if any(match.group().casefold() not in asked for match in _META.finditer(text)):
        return "meta_language"
    if config.check_arithmetic and not all(claim.holds for claim in equalities(text)):
        return "arithmetic"
    lines = sum(bool(line.strip()) for line in text.splitlines())
    return "" if config.min_steps <= lines <= config.max_steps else "steps"


class Contamination:
    """Finds texts that share an n-gram of words with an evaluation question, and questions that are one.

    What all questions of a source begin or end with ("State the final answer to ...") is its template and proves no
    leak: n-grams are taken from the words between. A question with fewer of them is compared as a whole only.
    """

    def __init__(self, questions: Iterable[tuple[str, str]], ngram: int) -> None:
        """Index evaluation questions, each with the name of its source."""
        self.ngram = ngram
        self.whole: set[str] = set()
        self.grams: set[tuple[str, ...]] = set()
        sources: dict[str, dict[str, Words]] = {}
        for source, question in questions:
            plain = normalize_question(question)
            self.whole.add(plain)
            sources.setdefault(source, {})[plain] = plain.split()
        for own in sources.values():
            for words in _without_template(list(own.values())):
                self.grams.update(self._grams(words))

    def found(self, text: str) -> bool:
        """Whether a text is an evaluation question or shares an n-gram with one."""
        plain = normalize_question(text)
        return plain in self.whole or any(gram in self.grams for gram in self._grams(plain.split()))

    def _grams(self, words: Words) -> Iterator[tuple[str, ...]]:
        return (tuple(words[start : start + self.ngram]) for start in range(len(words) - self.ngram + 1))


class Copies:
    """Remembers the chains of one question and recognises further copies of them.

    Similarity is the Jaccard index of word triples, so that the same numbers in another order are another text. MinHash
    finds what may be similar; the index itself decides.
    """

    def __init__(self, jaccard: float) -> None:
        self.jaccard = jaccard
        self._texts: set[str] = set()
        self._kept: list[tuple[object, frozenset[str]]] = []

    def reason(self, text: str) -> str:
        """`duplicate` or `near_duplicate` of an earlier text; empty for a new one, which is remembered."""
        from datasketch import MinHash

        plain = normalize_question(text)
        if plain in self._texts:
            return "duplicate"
        words = ["", *plain.split(), ""]
        triples = frozenset(" ".join(words[at : at + 3]) for at in range(len(words) - 2))
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
        sketch.update_batch([triple.encode() for triple in sorted(triples)])
        for other, theirs in self._kept:
            likely = sketch.jaccard(other) > self.jaccard - _MARGIN
            if likely and len(triples & theirs) > self.jaccard * len(triples | theirs):
                return "near_duplicate"
        self._texts.add(plain)
        self._kept.append((sketch, triples))
        return ""


def _without_template(questions: Sequence[Words]) -> list[Words]:
    if len(questions) < _TEMPLATE_QUESTIONS:
        return list(questions)
    start = _common(questions)
    rest = [words[start:] for words in questions]
    end = _common([words[::-1] for words in rest])
    return [words[: len(words) - end] for words in rest]


def _common(questions: Sequence[Words]) -> int:
    """How many words all questions begin with."""
    return sum(1 for _ in itertools.takewhile(lambda words: len(set(words)) == 1, zip(*questions, strict=False)))
