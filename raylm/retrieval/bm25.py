"""Keyword search: BM25 by bm25s, over places in a corpus, saved so that many processes map one copy."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raylm.errors import UserError
from raylm.softlabels.words import Segmenter, resolved, segmenter

SETTINGS = "raylm.json"
_LOOKED_AT = 1_000


class BM25:
    """An index of texts by their words; a text's number is its place in what was indexed."""

    def __init__(self, index: Any, count: int, segment: Segmenter, stem: str, average: float) -> None:
        """Wrap a bm25s index of `count` texts with so many words on average; use `of` or `load`."""
        self._index, self.count, self.segment, self.stem, self.average = index, count, segment, stem, average
        self._split = splitter(segment, stem)

    @classmethod
    def of(
        cls,
        texts: Iterable[str],
        *,
        segment: Segmenter = "auto",
        stem: Literal["", "english"] = "",
        k1: float = 1.2,
        b: float = 0.75,
    ) -> BM25:
        """Index texts; they are read once, and only numbers of words are kept.

        Args:
            texts: in the order of their places.
            segment: how texts fall into words; `auto` looks at the first thousand.
            stem: language of the Snowball stemmer; empty takes words as they are.
            k1: saturation of a word's count.
            b: weight of a text's length.
        """
        import bm25s

        rest = iter(texts)
        first = list(islice(rest, _LOOKED_AT))
        kind = resolved(segment, first)
        split, numbers, rows = splitter(kind, stem), dict[str, int](), []
        for text in chain(first, rest):
            rows.append(array("i", [numbers.setdefault(word, len(numbers)) for word in split(text)]))
        if not numbers:
            raise UserError("BM25: none of the texts holds a word")
        index = bm25s.BM25(k1=k1, b=b)
        index.index((rows, numbers), show_progress=False)
        return cls(index, len(rows), kind, stem, sum(map(len, rows)) / len(rows))

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k texts with the highest scores for each query, those without a common word never.

        Returns:
            places [queries, k] int64, -1 where fewer were found, and scores [queries, k] float32, 0 there; equal
            scores are in the order of places.
        """
        most = min(k, self.count)
        places = np.full((len(queries), k), -1, np.int64)
        scores = np.zeros((len(queries), k), np.float32)
        asked = [number for number, query in enumerate(queries) if any(self._known(query))]
        if not asked:
            return places, scores
        words = [self._known(queries[number]) for number in asked]
        found, values = self._index.retrieve(words, k=most, show_progress=False, n_threads=0)
        for number, row, value in zip(asked, found, values, strict=True):
            order = np.lexsort((row, -value))
            order = order[value[order] > 0]
            places[number, : len(order)], scores[number, : len(order)] = row[order], value[order]
        return places, scores

    def scores(self, query: str, places: np.ndarray | None = None) -> np.ndarray:
        """Scores of some texts for a query, [places] float32; of all texts without places."""
        words = self._known(query)
        if not words:
            return np.zeros(self.count if places is None else len(places), np.float32)
        found: np.ndarray = self._index.get_scores(words)
        return (found if places is None else found[places]).astype(np.float32)

    def frequency(self, word: str) -> int:
        """Texts that hold a word, as `words` gives them."""
        number = self._index.vocab_dict.get(word)
        starts = self._index.scores["indptr"]
        return 0 if number is None else int(starts[number + 1] - starts[number])

    def words(self, text: str) -> list[str]:
        """The words of a text, as they are counted."""
        return self._split(text)

    @property
    def constants(self) -> tuple[float, float]:
        """k1 and b."""
        return float(self._index.k1), float(self._index.b)

    def save(self, folder: str | Path) -> None:
        """Write a directory that `load` reads."""
        self._index.save(str(folder), show_progress=False)
        said = {"count": self.count, "segment": self.segment, "stem": self.stem, "average": self.average, "format": 1}
        (Path(folder) / SETTINGS).write_text(json.dumps(said))

    @classmethod
    def load(cls, folder: str | Path) -> BM25:
        """A saved index, its arrays mapped from the disk.

        Raises:
            UserError: the directory is not one that `save` wrote.
        """
        import bm25s

        if not (Path(folder) / SETTINGS).is_file():
            raise UserError(f"{folder}: not a saved BM25 index ({SETTINGS} is missing)")
        said = json.loads((Path(folder) / SETTINGS).read_text())
        index = bm25s.BM25.load(str(folder), mmap=True, show_progress=False)
        return cls(index, said["count"], said["segment"], said["stem"], said["average"])

    def _known(self, query: str) -> list[str]:
        vocabulary = self._index.vocab_dict
        return [word for word in self._split(query) if word in vocabulary]


def splitter(segment: Segmenter, stem: str = "") -> Callable[[str], list[str]]:
    """Texts to words, stemmed where a language is given.

    Raises:
        UserError: a stemmer or a segmenter is not installed.
    """
    split = segmenter(segment)
    if not stem:
        return split
    try:
        import Stemmer
    except ImportError:
        raise UserError("stemming needs PyStemmer: pip install PyStemmer") from None
    stemmer = Stemmer.Stemmer(stem)
    return lambda text: stemmer.stemWords(split(text))
