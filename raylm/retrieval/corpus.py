"""What a training run reads of a collection: the corpus by places, and its queries with what is relevant to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raylm.retrieval.data import Collection, Document, Judgments, chunks, whole
from raylm.softlabels.words import segmenter

_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])
_BLOCK = 4096


class Corpus:
    """Documents, or their chunks, by place; on disk it is one Arrow file that processes map and share."""

    def __init__(self, table: pa.Table) -> None:
        """Wrap a table with `id` and `text`."""
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @classmethod
    def of(cls, documents: Iterable[Document]) -> Corpus:
        """A corpus in memory."""
        return cls(pa.Table.from_batches(_batches(documents), _SCHEMA))

    @classmethod
    def write(cls, documents: Iterable[Document], file: Path) -> Corpus:
        """Write documents as they come, and open what was written; the file appears whole or not at all."""
        scratch = file.with_suffix(".part")
        with pa.OSFile(str(scratch), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for batch in _batches(documents):
                writer.write_batch(batch)
        scratch.rename(file)
        return cls.open(file)

    @classmethod
    def open(cls, file: Path) -> Corpus:
        """Map a written corpus."""
        return cls(pa.ipc.open_file(pa.memory_map(str(file))).read_all())

    @cached_property
    def ids(self) -> list[str]:
        """Id of every place; chunks have `DOCUMENT#NUMBER`."""
        found: list[str] = self._table["id"].to_pylist()
        return found

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """Id of every whole document to the places of its chunks, or to its own."""
        known, found = set(self.ids), dict[str, list[int]]()
        for place, name in enumerate(self.ids):
            head = whole(name)
            # A document may be called `a#1` itself; a chunk has a first one beside it.
            found.setdefault(head if f"{head}#0" in known else name, []).append(place)
        return found

    def texts(self, places: Sequence[int] | np.ndarray) -> list[str]:
        """Texts of some places, in their order."""
        found: list[str] = self._table["text"].take(pa.array(np.asarray(places, np.int64))).to_pylist()
        return found

    def blocks(self, size: int = _BLOCK) -> Iterator[list[str]]:
        """All texts, in their order."""
        for start in range(0, len(self), size):
            yield self._table["text"].slice(start, size).to_pylist()


@dataclass(frozen=True)
class Queries:
    """The queries of a split that have a relevant document."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    grades: tuple[dict[int, int], ...]
    """Place to grade of everything that is judged for a query, all chunks of a document alike."""
    relevant_from: int = 1
    """The grade from which a document is relevant."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def relevant(self) -> tuple[frozenset[int], ...]:
        """Places of what is relevant to each query."""
        return tuple(
            frozenset(place for place, grade in row.items() if grade >= self.relevant_from) for row in self.grades
        )

    def judged_negatives(self, query: int) -> list[int]:
        """Places of what is judged for a query and not relevant: hard negatives that people named."""
        return sorted(place for place, grade in self.grades[query].items() if grade < self.relevant_from)

    def take(self, numbers: Sequence[int]) -> Queries:
        """Some of them."""
        return Queries(
            tuple(self.ids[number] for number in numbers),
            tuple(self.texts[number] for number in numbers),
            tuple(self.grades[number] for number in numbers),
            self.relevant_from,
        )


def pieces(collection: Collection, tokenizer: Any, length: int, overlap: int) -> Iterator[Document]:
    """The documents of a collection in chunks; a generator."""
    for document in collection.documents():
        yield from chunks(document, tokenizer, length, overlap)


def queries(collection: Collection, split: str, corpus: Corpus, relevant_from: int = 1) -> Queries:
    """The queries of a split, in the order of their ids, that have a relevant document in the corpus."""
    texts, judged = collection.queries(), collection.judgments(split)
    return of_judgments(texts, judged, corpus, relevant_from)


def of_judgments(texts: dict[str, str], judged: Judgments, corpus: Corpus, relevant_from: int = 1) -> Queries:
    """As `queries`, from texts by id and judgments."""
    ids, rows = [], []
    for name in sorted(judged.keys() & texts.keys()):
        grades = {place: grade for doc, grade in judged[name].items() for place in corpus.places.get(doc, ())}
        if any(grade >= relevant_from for grade in grades.values()):
            ids.append(name)
            rows.append(grades)
    return Queries(tuple(ids), tuple(texts[name] for name in ids), tuple(rows), relevant_from)


def pairs(asked: Queries, corpus: Corpus) -> np.ndarray:
    """Training pairs (number of the query, place of a relevant document), [pairs, 2] int64.

    A relevant document in chunks gives one pair, with the chunk that has most of the query's words.
    """
    names, rows = corpus.ids, []
    for number, relevant in enumerate(asked.relevant):
        groups: dict[str, list[int]] = {}
        for place in sorted(relevant):
            name = names[place]
            own = corpus.places.get(name) == [place]
            groups.setdefault(name if own else whole(name), []).append(place)
        rows += [(number, _closest(asked.texts[number], group, corpus)) for group in groups.values()]
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def _closest(query: str, group: list[int], corpus: Corpus) -> int:
    if len(group) == 1:
        return group[0]
    texts = corpus.texts(group)
    split = segmenter("auto", texts)
    words = set(split(query))
    return max(zip(group, texts, strict=True), key=lambda item: (len(words & set(split(item[1]))), -item[0]))[0]


def _batches(documents: Iterable[Document]) -> Iterator[pa.RecordBatch]:
    held: list[Document] = []

    def batch() -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([[item.id for item in held], [item.text for item in held]], schema=_SCHEMA)

    for document in documents:
        held.append(document)
        if len(held) == _BLOCK:
            yield batch()
            held = []
    if held:
        yield batch()
