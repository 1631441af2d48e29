"""BM25 over documents: bm25s for the bulk, and its formula for a few documents that came later.

score(q, d) = sum over the words w of q of idf(w) f_d(w) / (f_d(w) + k1 (1 - b + b len_d / avg)),
idf(w) = ln(1 + (N - df(w) + 0.5) / (df(w) + 0.5)) (source: Lucene's form, Kamphuis et al. 2020).
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raylm.retrieval.index_config import IndexSettings
from raylm.softlabels.words import segmenter

FILES = ("scores.npy", "rows.npy", "starts.npy", "params.json", "vocabulary.json")
"""Of a saved BM25 index: bm25s' sparse matrix of scores by words, its constants and words."""
_NAMES = ("data_name", "indices_name", "indptr_name", "params_name", "vocab_name")


def analyser(language: str, sample: Sequence[str] = ()) -> tuple[str, Callable[[str], list[str]]]:
    """The language that is meant, and how its texts fall into words.

    Args:
        language: as `IndexSettings.language`.
        sample: texts that `auto` looks at.

    Raises:
        UserError: Chinese without jieba installed.
    """
    if language == "auto":
        text = "".join(sample[:1_000])
        chinese = sum("㐀" <= letter <= "鿿" for letter in text)
        language = "chinese" if 2 * chinese > sum(map(str.isalpha, text)) else "english"
    if language == "chinese":
        return language, segmenter("chinese")
    split = segmenter("words")
    if language == "none":
        return language, split
    import Stemmer
    from bm25s.stopwords import STOPWORDS_EN

    stem, stops = Stemmer.Stemmer("english").stemWords, frozenset(STOPWORDS_EN)
    return language, lambda text: stem([word for word in split(text) if word not in stops])


@dataclass(frozen=True)
class Lexical:
    """BM25 statistics and scores of a set of documents; nothing changes them once they are built."""

    model: Any
    """bm25s.BM25, None without any word."""
    documents: int
    average: float
    """Mean words of a document."""
    language: str
    split: Callable[[str], list[str]]
    k1: float
    b: float
    frequency: dict[str, int] = field(repr=False)
    """Documents that hold a word."""

    @classmethod
    def of(cls, texts: Sequence[str], settings: IndexSettings) -> Lexical:
        """Index texts, in their order."""
        language, split = analyser(settings.language, texts)
        words = [split(text) for text in texts]
        frequency = Counter(word for row in words for word in set(row))
        total = sum(map(len, words))
        model = None
        if total:
            import bm25s

            model = bm25s.BM25(k1=settings.k1, b=settings.b, method="lucene")
            model.index(words, create_empty_token=False, show_progress=False)
        average = total / max(1, len(texts))
        return cls(model, len(texts), average, language, split, settings.k1, settings.b, dict(frequency))

    def scores(self, query: str) -> np.ndarray:
        """Of every document, [documents]; 0 for those that share no word with the query."""
        known = [word for word in self.split(query) if word in self.frequency]
        if self.model is None or not known:
            return np.zeros(self.documents, np.float32)
        return np.asarray(self.model.get_scores(known), np.float32)

    def later(self, query: str, counts: Sequence[Counter[str]]) -> np.ndarray:
        """Scores of documents that are not among those of the statistics, by their counts of words: [documents].

        Words are weighed as before they came, a word that is new as if one document had it.
        """
        found = np.zeros(len(counts), np.float32)
        for word, times in Counter(self.split(query)).items():
            held = max(1, self.frequency.get(word, 0))
            rarity = math.log(1 + (max(self.documents, 1) - held + 0.5) / (held + 0.5))
            for place, count in enumerate(counts):
                if count[word]:
                    length = count.total() / max(self.average, 1e-9)
                    norm = self.k1 * (1 - self.b + self.b * length)
                    found[place] += times * rarity * count[word] / (count[word] + norm)
        return found

    def to_files(self) -> dict[str, bytes]:
        """Everything as files by name."""
        own = {"documents": self.documents, "average": self.average, "language": self.language}
        said = {**own, "k1": self.k1, "b": self.b, "frequency": self.frequency}
        found = {"statistics.json": json.dumps(said, ensure_ascii=False).encode()}
        if self.model is None:
            return found
        with tempfile.TemporaryDirectory(prefix="raylm-bm25-") as folder:
            self.model.save(folder, show_progress=False, **dict(zip(_NAMES, FILES, strict=True)))
            return found | {name: Path(folder, name).read_bytes() for name in FILES}

    @classmethod
    def from_files(cls, files: dict[str, bytes]) -> Lexical:
        """Read what `to_files` gave."""
        said = json.loads(files["statistics.json"])
        language, split = analyser(said["language"])
        model = None
        if FILES[0] in files:
            import bm25s

            with tempfile.TemporaryDirectory(prefix="raylm-bm25-") as folder:
                for name in FILES:
                    Path(folder, name).write_bytes(files[name])
                names = dict(zip(_NAMES, FILES, strict=True))
                model = bm25s.BM25.load(folder, allow_pickle=False, show_progress=False, **names)
        rest = said["k1"], said["b"], said["frequency"]
        return cls(model, said["documents"], said["average"], language, split, *rest)
