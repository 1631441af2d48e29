"""Texts to words, and words to count matrices."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse

from raylm.errors import UserError

Segmenter = Literal["auto", "words", "spaces", "chinese"]
_WORD = re.compile(r"\w+(?:'\w+)?")
_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


def segmenter(kind: Segmenter, texts: Sequence[str] = ()) -> Callable[[str], list[str]]:
    """How texts fall into words.

    Args:
        kind: `words` takes runs of letters and digits in lower case; `spaces` splits at white space alone (as the
            published code of keyword smoothing does); `chinese` segments with jieba; `auto` is `chinese` where most of
            the texts' letters are Chinese characters, and `words` elsewhere.
        texts: what `auto` looks at, the first thousand of them.

    Raises:
        UserError: Chinese without jieba installed.
    """
    kind = resolved(kind, texts)
    if kind == "spaces":
        return str.split
    if kind == "words":
        return lambda text: _WORD.findall(text.lower())
    try:
        import jieba
    except ImportError:
        raise UserError("these texts are Chinese, whose words need jieba: pip install jieba") from None
    jieba.setLogLevel("ERROR")
    return lambda text: [word for word in jieba.lcut(text.lower()) if _WORD.fullmatch(word)]


def resolved(kind: Segmenter, texts: Sequence[str]) -> Segmenter:
    """What `auto` stands for with these texts; the others stand for themselves."""
    if kind != "auto":
        return kind
    sample = "".join(texts[:1_000])
    return "chinese" if 2 * len(_HAN.findall(sample)) > sum(map(str.isalpha, sample)) else "words"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words that are counted."""

    words: tuple[str, ...]
    """Sorted."""
    split: Callable[[str], list[str]]

    @classmethod
    def of(cls, texts: Sequence[str], split: Callable[[str], list[str]], min_texts: int = 1) -> Vocabulary:
        """All words that at least `min_texts` of the texts hold."""
        frequency: dict[str, int] = {}
        for text in texts:
            for word in set(split(text)):
                frequency[word] = frequency.get(word, 0) + 1
        return cls(tuple(sorted(word for word, count in frequency.items() if count >= min_texts)), split)

    def counts(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """How often every text holds every word: [texts, words], float64; other words do not count."""
        places = {word: place for place, word in enumerate(self.words)}
        columns: list[int] = []
        starts = [0]
        for text in texts:
            columns += [places[word] for word in self.split(text) if word in places]
            starts.append(len(columns))
        ones = np.ones(len(columns))
        found = sparse.csr_matrix((ones, columns, starts), shape=(len(texts), len(self.words)))
        found.sum_duplicates()
        return found
