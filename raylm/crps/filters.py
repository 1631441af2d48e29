"""What a synthesised chain must pass, and how copies and leaks are found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from raylm.crps.config import FilterConfig
from raylm.records import Chain
from raylm.tasks.answers import equalities, final_answers, normalize_question

_META = re.compile(
    r"\b(?:trajector(?:y|ies)|path [ab]\b|(?:wrong|incorrect|bad|other|previous) (?:path|solution|attempt|answer)|"
    r"critique|as analy[sz]ed|gold answer)",
    re.IGNORECASE,
)
_PERMUTATIONS = 64


def fault(text: str, config: FilterConfig) -> str:
    """Why a response must not be trained on, empty when it may: one of
    `final_answers`, `meta_language`, `arithmetic`, `steps`."""
    lines = [line for line in text.splitlines() if line.strip()]
    if final_answers(text) != 1:
        return "final_answers"
    if _META.search(text):
        return "meta_language"
    if config.check_arithmetic and not all(claim.holds for claim in equalities(text)):
        return "arithmetic"
    if not config.min_steps <= len(lines) <= config.max_steps:
        return "steps"
    return ""


class Contamination:
    """Finds texts that share an n-gram of words with an evaluation question, or are one."""

    def __init__(self, questions: Iterable[str], ngram: int) -> None:
        self.ngram = ngram
        self.grams: set[tuple[str, ...]] = set()
        self.whole: set[str] = set()
        for question in questions:
            self.whole.add(normalize_question(question))
            self.grams.update(self._grams(question))

    def found(self, question: str, response: str) -> bool:
        """Whether the question is an evaluation question or either text shares an n-gram with one."""
        if normalize_question(question) in self.whole:
            return True
        return any(gram in self.grams for text in (question, response) for gram in self._grams(text))

    def _grams(self, text: str) -> Iterable[tuple[str, ...]]:
        words = normalize_question(text).split()
        return (tuple(words[start : start + self.ngram]) for start in range(len(words) - self.ngram + 1))


def unique(chains: Sequence[Chain], jaccard: float) -> list[Chain]:
    """The chains of one problem without later copies: equal normalised text, or MinHash similarity above `jaccard`.

    Similarity is over words with their neighbours, so that numbers in another order count as another text.
    """
    from datasketch import MinHash

    kept: list[Chain] = []
    hashes: list[MinHash] = []
    texts: set[str] = set()
    for chain in chains:
        text = normalize_question(chain.messages[-1].content)
        if text in texts:
            continue
        words = ["", *text.split(), ""]
        minhash = MinHash(num_perm=_PERMUTATIONS, seed=1)
        minhash.update_batch([" ".join(words[at : at + 3]).encode() for at in range(len(words) - 2)])
        if any(minhash.jaccard(other) > jaccard for other in hashes):
            continue
        texts.add(text)
        kept.append(chain)
        hashes.append(minhash)
    return kept
