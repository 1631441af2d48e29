"""Hard negatives: what BM25 or the encoder finds for a query and nobody judged relevant, with the scores that say so.

Candidates are the top of a ranking without what is relevant. A document with the very text of a relevant one is left
out as well, and a teacher may drop those that it scores above the relevant document: most likely they are relevant and
were never judged (source: a related paper, RocketQA). Everything that was looked at is kept as rows, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from raylm.errors import UserError
from raylm.llm import models, quick
from raylm.retrieval.corpus import Corpus, Queries
from raylm.retrieval.encoder import Encoder

Source = Literal["judged", "bm25", "ann"]
SOURCES: tuple[Source, ...] = ("judged", "bm25", "ann")
SCHEMA = pa.schema([
    ("query", pa.string()), ("document", pa.string()), ("source", pa.string()), ("rank", pa.int32()),
    ("score", pa.float32()), ("teacher", pa.float32()), ("teacher_positive", pa.float32()), ("kept", pa.bool_()),
    ("reason", pa.string()),
])  # fmt: skip
"""A row for every candidate that was looked at. teacher_positive is the lowest score among the query's relevant
documents; reason says why a candidate was not kept: relevant, same text, teacher."""
Teacher = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""Scores of pairs of a query and a document, [pairs]."""


@dataclass(frozen=True)
class Rule:
    """How candidates become negatives."""

    depth: int = 50
    """Ranks that are looked at."""
    skip: int = 0
    """Highest ranks that are left out: the cheap guard against relevant documents that nobody judged."""
    keep: int = 20
    """Negatives kept for a query and source, best first."""
    margin: float = 0.0
    """What a candidate's teacher score must be below the relevant document's by, to be kept."""


def judge(
    asked: Queries,
    corpus: Corpus,
    source: Source,
    found: tuple[np.ndarray, np.ndarray],
    rule: Rule,
    *,
    teacher: Teacher | None = None,
) -> pa.Table:
    """Rows of `SCHEMA` for rankings of some queries.

    Args:
        found: places [queries, depth] int64, best first, -1 where there is none, and their scores.
        rule: what is kept.
        teacher: drops candidates that it holds relevant.
    """
    rows: list[dict[str, Any]] = []
    for number, (places, scores) in enumerate(zip(*found, strict=True)):
        there = places[places >= 0]
        relevant = sorted(asked.relevant[number])
        twins = set(corpus.texts(relevant))
        texts = corpus.texts(there)
        reasons = [
            "relevant" if place in asked.relevant[number] else "same text" if text in twins else ""
            for place, text in zip(there, texts, strict=True)
        ]
        marks, floor = np.full(len(there), np.nan), float("nan")
        if teacher is not None and len(there):
            own = corpus.texts(relevant)
            scored = teacher([asked.texts[number]] * (len(own) + len(texts)), [*own, *texts])
            floor, marks = float(scored[: len(own)].min()), scored[len(own) :]
            reasons = [
                reason or ("teacher" if mark > floor - rule.margin else "")
                for reason, mark in zip(reasons, marks, strict=True)
            ]
        kept = 0
        for rank, reason in enumerate(reasons):
            take = not reason and rank >= rule.skip and kept < rule.keep
            kept += take
            rows.append({
                "query": asked.ids[number], "document": corpus.ids[there[rank]], "source": source, "rank": rank,
                "score": float(scores[rank]), "teacher": float(marks[rank]), "teacher_positive": floor, "kept": take,
                "reason": reason or ("" if take else "rank"),
            })  # fmt: skip
    return pa.Table.from_pylist(rows, SCHEMA)


def judged(asked: Queries) -> tuple[np.ndarray, np.ndarray]:
    """What people judged not relevant, in the form of rankings: the highest grade first."""
    rows = [sorted(asked.judged_negatives(number), key=lambda place: (-asked.grades[number][place], place))
            for number in range(len(asked))]  # fmt: skip
    widest = max(map(len, rows), default=0)
    places, scores = np.full((len(rows), widest), -1, np.int64), np.zeros((len(rows), widest), np.float32)
    for number, row in enumerate(rows):
        places[number, : len(row)] = row
        scores[number, : len(row)] = [asked.grades[number][place] for place in row]
    return places, scores


def nearest(vectors: np.ndarray, documents: np.ndarray, k: int, block: int = 65_536) -> tuple[np.ndarray, np.ndarray]:
    """The k documents with the highest inner product for each query, exactly, equal ones by place.

    Args:
        vectors: [queries, dimensions].
        documents: [documents, dimensions]; read block by block, so that it may be a memory map.

    Returns:
        places [queries, k] int64 and scores [queries, k]; k is at most the number of documents.
    """
    best_places: np.ndarray = np.empty((len(vectors), 0), np.int64)
    best_scores: np.ndarray = np.empty((len(vectors), 0), np.float32)
    for start in range(0, len(documents), block):
        scores = vectors @ documents[start : start + block].T
        top = min(k, scores.shape[1])
        places = np.argpartition(-scores, top - 1, axis=1)[:, :top]
        best_places = np.hstack([best_places, places + start])
        best_scores = np.hstack([best_scores, np.take_along_axis(scores, places, 1)])
        order = np.lexsort((best_places, -best_scores))[:, :k]
        best_places, best_scores = (np.take_along_axis(rows, order, 1) for rows in (best_places, best_scores))
    return best_places, best_scores


class Pools:
    """Negatives to draw from: for every query a list of places of every source."""

    def __init__(self, rows: dict[str, list[list[int]]], shares: dict[str, float]) -> None:
        """Hold pools.

        Args:
            rows: source to the places of every query, best first.
            shares: source to its weight in a draw; a query that has none of a source draws from the others.
        """
        self.rows, self.shares = rows, shares

    @classmethod
    def of(cls, table: pa.Table, asked: Queries, corpus: Corpus, shares: dict[str, float]) -> Pools:
        """From mined rows."""
        numbers = {name: number for number, name in enumerate(asked.ids)}
        at = {name: place for place, name in enumerate(corpus.ids)}
        rows: dict[str, list[list[int]]] = {source: [[] for _ in asked.ids] for source in SOURCES}
        kept = table.filter(table["kept"]).to_pydict()
        for query, document, source in zip(kept["query"], kept["document"], kept["source"], strict=True):
            if query in numbers:
                rows[source][numbers[query]].append(at[document])
        return cls(rows, shares)

    def draw(
        self, query: int, count: int, draws: np.random.Generator, relevant: frozenset[int], total: int
    ) -> tuple[list[int], list[str]]:
        """Different negatives for a query and the source of each; where pools run dry, random documents ("random").

        Args:
            relevant: places that are never drawn.
            total: documents of the corpus.
        """
        left = {source: list(rows[query]) for source, rows in self.rows.items() if self.shares.get(source, 0) > 0}
        places: list[int] = []
        sources: list[str] = []
        while len(places) < count:
            open_ = [source for source, row in left.items() if row]
            if not open_:
                if total - len(relevant | set(places)) <= 0:
                    break
                place, source = int(draws.integers(total)), "random"
            else:
                weights = np.array([self.shares[source] for source in open_])
                source = open_[int(draws.choice(len(open_), p=weights / weights.sum()))]
                place = left[source].pop(int(draws.integers(len(left[source]))))
            if place not in relevant and place not in places:
                places.append(place)
                sources.append(source)
        return places, sources


class Remembered:
    """A teacher that is asked once for a pair of a training query and a document."""

    def __init__(self, teacher: Teacher, asked: Queries, corpus: Corpus) -> None:
        """Remember what a teacher says of these queries and documents."""
        self.teacher, self.asked, self.corpus = teacher, asked, corpus
        self._known: dict[tuple[int, int], float] = {}

    def __call__(self, numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Scores of pairs, [pairs], of numbers of queries and places of documents."""
        cells = list(zip(numbers.tolist(), places.tolist(), strict=True))
        new = list(dict.fromkeys(cell for cell in cells if cell not in self._known))
        if new:
            texts = self.corpus.texts([place for _, place in new])
            scored = self.teacher([self.asked.texts[number] for number, _ in new], texts)
            self._known |= dict(zip(new, map(float, scored), strict=True))
        return np.array([self._known[cell] for cell in cells], dtype=np.float32)


def by_encoder(encoder: Encoder) -> Teacher:
    """A bi-encoder as a teacher: cosines."""

    def scores(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        sides = []
        for texts, kind in ((queries, "query"), (documents, "document")):
            rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
            sides.append(encoder.encode(list(rows), kind)[[rows[text] for text in texts]])  # type: ignore[arg-type]
        found: np.ndarray = (sides[0] * sides[1]).sum(1)
        return found

    return scores


def teacher_of(name: str, max_length: int) -> Teacher:
    """A teacher from a directory or a known encoder's name.

    Raises:
        UserError: it is nowhere to be had, or classifies into more than one output.
    """
    path = models.resolve_encoder(name).path
    said = models.read_json(path / "config.json")
    if not any(kind.endswith("ForSequenceClassification") for kind in said.get("architectures") or ()):
        return by_encoder(Encoder.load(name, max_length=max_length))
    if len(said.get("id2label", {0: ""})) != 1:
        raise UserError(
            f"negatives.teacher={name}: a classifier with {len(said['id2label'])} outputs; it must have one"
        )
    return by_cross_encoder(str(path), max_length)


def by_cross_encoder(path: str, max_length: int, batch_size: int = 32) -> Teacher:
    """A cross-encoder (a sequence classifier with one output, read with query and document together) as a teacher."""
    import torch

    quick.without_sklearn()
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, use_safetensors=True).eval()

    @torch.inference_mode()
    def scores(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        found = []
        for start in range(0, len(queries), batch_size):
            part = slice(start, start + batch_size)
            batch = tokenizer(list(queries[part]), list(documents[part]), truncation="only_second", padding=True,
                              max_length=max_length, return_tensors="pt")  # fmt: skip
            found.append(model(**batch).logits[:, 0].numpy())
        return np.concatenate(found) if found else np.zeros(0, np.float32)

    return scores
