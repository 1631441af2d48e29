"""BM25 of an index: the bulk by bm25s, a few documents that came later by its formula, everything as files.

score(q, d) = sum over the words w of q of idf(w) f_d(w) / (f_d(w) + k1 (1 - b + b len_d / avg)),
idf(w) = ln(1 + (N - df(w) + 0.5) / (df(w) + 0.5)) (source: Lucene's form, Kamphuis et al. 2020).
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raylm.retrieval.bm25 import BM25, splitter
from raylm.retrieval.index_config import IndexSettings
from raylm.softlabels.words import Segmenter, resolved

EMPTY = "words.json"
"""File of a set of documents without any word."""


@dataclass(frozen=True)
class Lexical:
    """BM25 of a set of documents; nothing changes it once it is built."""

    bm25: BM25 | None
    """None where no document has a word."""
    documents: int
    split: Callable[[str], list[str]]
    """Texts to the words that are counted."""

    @classmethod
    def of(cls, texts: Sequence[str], settings: IndexSettings) -> Lexical:
        """Index texts, in their order."""
        segment, stem = _words(settings, texts)
        split = splitter(segment, stem)
        if not any(split(text) for text in texts):
            return cls(None, len(texts), split)
        bm25 = BM25.of(texts, segment=segment, stem=stem, k1=settings.k1, b=settings.b)  # type: ignore[arg-type]
        return cls(bm25, len(texts), bm25.words)

    def scores(self, query: str) -> np.ndarray:
        """Of every document, [documents]; 0 for those that share no word with the query."""
        return np.zeros(self.documents, np.float32) if self.bm25 is None else self.bm25.scores(query)

    def later(self, query: str, counts: Sequence[Counter[str]]) -> np.ndarray:
        """Scores of documents that are not among those of the statistics, by their counts of words: [documents].

        Words are weighed as before they came, a word that is new as if one document had it.
        """
        found = np.zeros(len(counts), np.float32)
        if not counts:
            return found
        k1, b = self.bm25.constants if self.bm25 is not None else (IndexSettings().k1, IndexSettings().b)
        average = self.bm25.average if self.bm25 is not None else max(1.0, float(np.mean([c.total() for c in counts])))
        norms = [k1 * (1 - b + b * count.total() / average) for count in counts]
        for word, times in Counter(self.split(query)).items():
            held = max(1, self.bm25.frequency(word) if self.bm25 is not None else 0)
            rarity = math.log(1 + (max(self.documents, 1) - held + 0.5) / (held + 0.5))
            for place, count in enumerate(counts):
                if tf := count[word]:
                    found[place] += times * rarity * tf / (tf + norms[place])
        return found

    def to_files(self) -> dict[str, bytes]:
        """Everything as files by name."""
        if self.bm25 is None:
            return {EMPTY: json.dumps({"documents": self.documents}).encode()}
        with tempfile.TemporaryDirectory(prefix="raylm-bm25-") as folder:
            self.bm25.save(folder)
            return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}

    @classmethod
    def from_files(cls, files: dict[str, bytes], documents: Sequence[str], settings: IndexSettings) -> Lexical:
        """Read what `to_files` gave for these documents."""
        if EMPTY in files:
            return cls.of(documents, settings)
        with tempfile.TemporaryDirectory(prefix="raylm-bm25-") as folder:
            for name, data in files.items():
                Path(folder, name).write_bytes(data)
            bm25 = BM25.load(folder)
        return cls(bm25, bm25.count, bm25.words)


def _words(settings: IndexSettings, texts: Sequence[str]) -> tuple[Segmenter, str]:
    """How texts fall into words, and the language of the stemmer."""
    segment: Segmenter = {"english": "words", "none": "words", "chinese": "chinese"}.get(settings.language, "auto")  # type: ignore[assignment]
    found = resolved(segment, texts)
    return found, "english" if found == "words" and settings.language != "none" else ""
