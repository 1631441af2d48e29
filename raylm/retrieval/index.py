"""An index of documents: vectors of one encoder and the words of BM25, as versions that nothing changes.

Adding and deleting give a new index that shares the built part with the old one: a search in another thread goes on
with the version that it began with. Documents that came since the last build wait in a tail that is searched exactly;
once tail and deleted documents are a share of the whole, everything is built again.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from raylm.errors import UserError
from raylm.retrieval import fusion
from raylm.retrieval.ann import Ann, packed
from raylm.retrieval.fusion import Hit
from raylm.retrieval.index_config import IndexSettings, Mode
from raylm.retrieval.index_parts import Base, Source, Tail, check_ids, no_tail, unit
from raylm.retrieval.lexical import Lexical

if TYPE_CHECKING:
    from raylm.retrieval.encoder import Encoder

DIGITS = 6
"""Decimals of a score: what is closer counts as equal, for matrix products are not the same for every batch size."""
FUSED = 100
"""Documents of each ranking that a hybrid search fuses, or k where that is more."""
_DEFAULTS = IndexSettings()
_TAIL_MIN, _TAIL_MAX = 256, 4096
"""Changes that are always and never left to wait."""
_hit = tuple.__new__  # a named tuple without its own constructor, which takes most of the time of a short search
_hashes: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Index:
    """One version of an index. Any number of threads may search it."""

    source: Source
    settings: IndexSettings
    base: Base
    tail: Tail
    dead: frozenset[int]
    """Rows of the base that are deleted or replaced."""
    facts: dict[str, Any]
    """recall_at_10 of the base's search against the exact one, and on what it was measured."""

    @classmethod
    def build(
        cls, ids: Sequence[str], texts: Sequence[str], vectors: np.ndarray, *, source: Source,
        settings: IndexSettings = _DEFAULTS, queries: np.ndarray | None = None,
    ) -> Index:  # fmt: skip
        """Index documents.

        Args:
            ids: distinct.
            texts: as many; they are kept for BM25 and to be shown.
            vectors: [documents, dimension], put to length 1.
            source: the encoder that made the vectors.
            settings: kind of index, words.
            queries: [queries, dimension], vectors on which the recall of the approximate search is measured; without
                them it is measured on two hundred of the documents.

        Raises:
            UserError: repeated ids, counts that differ, vectors that are not finite or zero.
        """
        found = unit(np.asarray(vectors), ids, None)
        check_ids(ids, texts, len(found))
        ann = Ann.build(found, settings)
        asked = unit(np.asarray(queries), (), found.shape[1]) if queries is not None and len(queries) else None
        if asked is None:
            asked = found[np.random.default_rng(0).permutation(len(found))[:200]]
        facts = {
            "recall_at_10": ann.recall(asked),
            "recall_queries": len(asked),
            "recall_on": "documents" if queries is None or not len(queries) else "queries",
        }
        names = np.array(list(ids), dtype=object)
        places = {name: row for row, name in enumerate(names)}
        base = Base(names, list(texts), places, ann, Lexical.of(texts, settings))
        return cls(source, settings, base, no_tail(found.shape[1]), frozenset(), facts)

    @classmethod
    def open(cls, path: str) -> Index:
        """The index that `save` wrote, or that of an `index` artefact.

        Raises:
            UserError: there is none, a file is missing, cut short or changed, or the format is another.
        """
        from raylm.retrieval.index_files import read

        return read(path)

    def save(self, path: str) -> None:
        """Write the index as the newest version in a directory; a save that is killed leaves the version before.

        Files of the built part that are there already are not written again.
        """
        from raylm.retrieval.index_files import write

        write(self, path)

    def __len__(self) -> int:
        return len(self.base.ids) - len(self.dead) + len(self.tail.ids)

    def __contains__(self, id: str) -> bool:
        row = self.base.places.get(id, -1)
        return id in self._later or (row >= 0 and row not in self.dead)

    @property
    def dimension(self) -> int:
        """Coordinates of a vector."""
        return int(self.tail.vectors.shape[1])

    @property
    def kind(self) -> str:
        """flat, ivf or hnsw."""
        return self.base.ann.kind

    @property
    def ids(self) -> list[str]:
        """Of all documents, those of the base first."""
        return [name for row, name in enumerate(self.base.ids) if row not in self.dead] + list(self.tail.ids)

    def text(self, id: str) -> str:
        """A document's text.

        Raises:
            KeyError: it is not there.
        """
        if (place := self._later.get(id)) is not None:
            return self.tail.texts[place]
        row = self.base.places[id]
        if row in self.dead:
            raise KeyError(id)
        return self.base.texts[row]

    def search(self, vectors: np.ndarray, k: int = 10) -> list[list[Hit]]:
        """The k documents nearest to each query by cosine, ties by id.

        Args:
            vectors: [queries, dimension] by the index' encoder.
            k: where there are fewer documents, all of them.

        Raises:
            UserError: another dimension, or a vector that is not finite.
        """
        queries = unit(np.asarray(vectors), (), self.dimension)
        want = min(k, len(self))
        if want <= 0 or not len(queries):
            return [[] for _ in queries]
        rows, scores = self._nearest(queries, want + 1)
        names = self._names[rows].tolist()
        return [self._row(queries, number, (rows, scores), ids, want) for number, ids in enumerate(names)]

    def search_words(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """BM25's ranking of the documents that share a word with each query, ties by id."""
        found, names, lexical = [], self._names, self.base.lexical
        for query in queries:
            scores = np.concatenate([lexical.scores(query), lexical.later(query, self.tail.counts)])
            scores[list(self.dead)] = 0.0
            scores = np.round(np.where(scores > 0, scores, -np.inf), DIGITS)
            found.append([Hit(names[place], float(scores[place])) for place in fusion.best(scores, names, k)])
        return found

    def search_text(
        self, queries: Sequence[str], encoder: Encoder | None = None, k: int = 10, mode: Mode = "dense"
    ) -> list[list[Hit]]:
        """Rank documents for texts, by vectors, by BM25, or by both with reciprocal rank fusion.

        Args:
            queries: texts.
            encoder: the index' own; bm25 does without.
            k: documents a query.
            mode: dense, bm25 or hybrid.

        Raises:
            UserError: the encoder is another one than the index is of.
        """
        if mode == "bm25":
            return self.search_words(queries, k)
        if encoder is None:
            raise UserError(f"mode {mode} needs the encoder {self.source.name} ({self.source.hash})")
        self.check_encoder(encoder)
        vectors = encoder.encode(queries, "query")
        if mode == "dense":
            return self.search(vectors, k)
        depth = max(k, FUSED)
        both = zip(self.search(vectors, depth), self.search_words(queries, depth), strict=True)
        return [fusion.reciprocal_rank(rankings, k) for rankings in both]

    def encoder(self, model: str = "", device: str = "cpu") -> Encoder:
        """The encoder that the index is of, from where the index says that it is or from another place.

        Raises:
            UserError: it is not to be had, or what is there now is another one.
        """
        from raylm.retrieval.encoder import Encoder

        said = self.source
        found = Encoder.load(model or said.name, said.revision or None, device, max_length=said.max_length)
        self.check_encoder(found)
        return found

    def check_encoder(self, encoder: Encoder | str) -> None:
        """Refuse an encoder, or the hash of one, that the index is not of.

        An encoder object is hashed once: one that is trained afterwards is not looked at again.
        """
        if isinstance(encoder, str):
            said = encoder
        else:
            said = _hashes[encoder] = _hashes.get(encoder) or encoder.hash
        if said != self.source.hash:
            raise UserError(
                f"this index holds vectors of the encoder {self.source.name} ({self.source.hash}), and was asked with "
                f"one whose hash is {said}: take that encoder, or build the index again with this one"
            )

    def add(
        self, ids: Sequence[str], texts: Sequence[str], vectors: np.ndarray, *, encoder: Encoder | str | None = None,
        settle: bool = True,
    ) -> Index:  # fmt: skip
        """The version with these documents; those whose ids are there already are replaced.

        Args:
            ids: distinct.
            texts: as many.
            vectors: [documents, dimension] by the index' encoder.
            encoder: what made the vectors, an encoder or its hash; refused where the index is of another.
            settle: build everything again where the version is `crowded`, which takes as long as `build`.

        Raises:
            UserError: repeated ids, another encoder or dimension, vectors that are not finite or zero.
        """
        if encoder is not None:
            self.check_encoder(encoder)
        found = unit(np.asarray(vectors), ids, self.dimension)
        check_ids(ids, texts, len(found))
        kept, _ = self._without(ids)
        counts = tuple(Counter(self.base.lexical.split(text)) for text in texts)
        old = kept.tail
        merged = np.concatenate([old.vectors, found])
        tail = Tail((*old.ids, *ids), (*old.texts, *texts), merged, (*old.counts, *counts))
        changed = replace(kept, tail=tail)
        return changed.compacted() if settle and changed.crowded else changed

    def delete(self, ids: Sequence[str], *, settle: bool = True) -> tuple[Index, list[str]]:
        """The version without these documents, and those of the ids that were not there; `settle` as of `add`."""
        kept, unknown = self._without(ids)
        return kept.compacted() if settle and kept.crowded else kept, unknown

    def compacted(self) -> Index:
        """The same documents with everything built anew."""
        alive = np.array([row for row in range(len(self.base.ids)) if row not in self.dead], dtype=np.int64)
        vectors = np.concatenate([self.base.ann.vectors()[alive], self.tail.vectors])
        texts = [self.base.texts[row] for row in alive] + list(self.tail.texts)
        found = Index.build(self.ids, texts, vectors, source=self.source, settings=self.settings)
        return replace(found, facts={**self.facts, **found.facts})

    @property
    def waiting(self) -> int:
        """Documents that were put in or taken out since everything was built."""
        return len(self.tail.ids) + len(self.dead)

    @property
    def crowded(self) -> bool:
        """Whether so much waits that everything should be built again."""
        return self.waiting > min(_TAIL_MAX, max(_TAIL_MIN, self.settings.compact_at * len(self)))

    @cached_property
    def _later(self) -> dict[str, int]:
        """Place in the tail of every id there."""
        return {name: place for place, name in enumerate(self.tail.ids)}

    @cached_property
    def _dead_bits(self) -> np.ndarray | None:
        return packed(self.dead, len(self.base.ids))

    @cached_property
    def _names(self) -> np.ndarray:
        if not self.tail.ids:
            return self.base.ids
        return np.concatenate([self.base.ids, np.array(self.tail.ids, dtype=object)])

    def _nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and rounded scores, best first, [queries, at most k]; row -1 where there are fewer."""
        rows, scores = self.base.ann.search(queries, max(1, min(k, len(self.base.ids))), self._dead_bits)
        if self.tail.ids:
            count = len(self.tail.ids)
            later = np.broadcast_to(np.arange(count) + len(self.base.ids), (len(queries), count))
            rows = np.concatenate([rows, later], axis=1)
            scores = np.concatenate([np.where(rows[:, : scores.shape[1]] < 0, -np.inf, scores),
                                     queries @ self.tail.vectors.T], axis=1)  # fmt: skip
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
        return rows, scores.round(DIGITS)

    def _row(
        self, queries: np.ndarray, number: int, found: tuple[np.ndarray, np.ndarray], ids: list[str], want: int
    ) -> list[Hit]:
        """One query's ranking; where scores are equal or rows missing, by id, and further down while ties go on."""
        rows, scores = found[0][number], found[1][number].tolist()
        last, hits = math.inf, []
        for name, score in zip(ids, scores, strict=True):
            if not score < last:
                break
            last = score
            hits.append(_hit(Hit, (name, score)))
        else:
            if rows[-1] >= 0:
                return hits[:want]
        return self._ranked(queries[number : number + 1], rows, found[1][number], want)

    def _ranked(self, query: np.ndarray, rows: np.ndarray, scores: np.ndarray, want: int) -> list[Hit]:
        """One query's ranking by score and id; looks further while documents as near as the last one may be hidden."""
        take = len(rows)
        while take < len(self) and rows[-1] >= 0 and len(rows) > want and scores[want - 1] == scores[-1]:
            take = min(2 * take, len(self))
            (rows,), (scores,) = self._nearest(query, take)
        names = self._names
        found = [Hit(names[row], float(score)) for row, score in zip(rows, scores, strict=True) if row >= 0]
        return sorted(found, key=lambda hit: (-hit.score, hit.id))[:want]

    def _without(self, ids: Sequence[str]) -> tuple[Index, list[str]]:
        gone = set(ids)
        in_base = {name: row for name in gone if (row := self.base.places.get(name, -1)) >= 0 and row not in self.dead}
        keep = [place for place, name in enumerate(self.tail.ids) if name not in gone]
        unknown = [name for name in dict.fromkeys(ids) if name not in in_base and name not in self._later]
        tail = self.tail
        if len(keep) < len(tail.ids):
            names, texts = (tuple(column[n] for n in keep) for column in (tail.ids, tail.texts))
            tail = Tail(names, texts, tail.vectors[keep], tuple(tail.counts[n] for n in keep))
        return replace(self, tail=tail, dead=self.dead | frozenset(in_base.values())), unknown
