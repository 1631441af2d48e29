"""Soft targets of a training run: scores of training queries with the documents that may stand in their batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raylm.errors import UserError
from raylm.retrieval.corpus import Corpus, Queries
from raylm.retrieval.encoder import Encoder, Kind
from raylm.retrieval.negatives import Remembered, Teacher
from raylm.seeds import stable_seed
from raylm.softlabels import distributions, enhancement
from raylm.softlabels.enhancement_config import EnhancementConfig
from raylm.softlabels.terms import Reading, Statistics, TermHeads, Weighted, embedding, reading
from raylm.softlabels.words import segmenter

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Numbers of queries [batch] and places of documents [candidates] to scores [batch, candidates]."""
DENSE = 200_000_000
"""Cells of the table of queries and relevant documents that glle and propagation may fill."""
TABLE = 50_000_000
"""Cells of a table of all queries and documents up to which scores are made once and not batch by batch."""
FEATURES = ("cosine of weighted vectors", "shared term weights", "BM25")
"""What the relevance head looks at."""
_EASY = 4
"""Random documents and mined negatives that a query gives the relevance head, each."""


@dataclass(frozen=True)
class Pool:
    """What the soft targets of a run are made from."""

    asked: Queries
    pairs: np.ndarray
    """[pairs, 2]: query number, place of a relevant document."""
    corpus: Corpus
    places: np.ndarray
    """Sorted places of all documents that may be candidates; others get nothing of a soft target."""
    negatives: Sequence[Sequence[int]]
    """Places of mined negatives of every query."""
    encoder: Encoder
    """As it was before the training."""
    teacher: Teacher | None = None
    memory: dict[tuple[str, str], Reading] | None = None
    """Readings of texts by kind and text, kept for other runs with the same untouched encoder; None keeps none."""

    def columns(self, places: np.ndarray) -> np.ndarray:
        """Where places stand in `places`; they must be there."""
        return np.searchsorted(self.places, places)


class SoftTargets:
    """Distributions over the documents of a batch."""

    def __init__(self, config: EnhancementConfig, pool: Pool, seed: int = 0) -> None:
        """Prepare scores of a kind.

        Raises:
            UserError: glle or propagation for too many queries and documents; a teacher that is not there.
        """
        self.config, self.pool, self.seed = config, pool, seed
        self._score = _scores(config, pool, seed)
        self._table: np.ndarray | None = None
        if config.kind != "teacher" and len(pool.asked) * len(pool.places) <= TABLE:
            numbers = np.arange(len(pool.asked))
            parts = [self._score(part, pool.places) for part in np.array_split(numbers, -(-len(numbers) // 64))]
            self._table = np.concatenate(parts).astype(np.float32)

    def rows(self, numbers: np.ndarray, places: np.ndarray, allowed: torch.Tensor) -> torch.Tensor:
        """Target distributions of a batch, [batch, candidates] float32; the first columns are the own positives.

        Args:
            numbers: [batch], of the queries.
            places: [candidates], of the documents: the batch's positives, then its hard negatives.
            allowed: [batch, candidates], see `Candidates`.
        """
        known = np.isin(places, self.pool.places)
        counts, gold = allowed.cpu().numpy() & known, np.arange(len(numbers))
        counts[gold, gold] = True
        if self.config.kind == "uniform":
            found = enhancement.uniform(counts, gold, self.config.share, self.config.entropy)
        else:
            scores = np.zeros(counts.shape)
            scores[:, known] = self.scores(numbers, places[known])
            soft = enhancement.at_entropy(scores, counts, self.config.entropy)
            soft[counts.sum(1) == 1] = counts[counts.sum(1) == 1]
            found = enhancement.mixed(soft, gold, self.config.share)
        if self.config.permute:
            seeds = [stable_seed(self.seed, "permute", number, *places) for number in numbers]
            found = enhancement.permuted(found, counts, gold, seeds)
        return torch.from_numpy(found).float()

    def facts(self) -> dict[str, Any]:
        """What can be said of the targets, for the manifest: kind, documents, coefficients of the relevance head."""
        found: dict[str, Any] = {"kind": self.config.kind, "documents": len(self.pool.places)}
        if isinstance(self._score, Enhanced):
            found["coefficients"] = dict(zip(FEATURES, self._score.head.coefficients(), strict=True))
        return found

    def scores(self, numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Scores of queries with documents of the pool, [queries, documents]; uniform has none."""
        if self._table is None:
            return self._score(numbers, places)
        found: np.ndarray = self._table[numbers][:, self.pool.columns(places)]
        return found


def _scores(config: EnhancementConfig, pool: Pool, seed: int) -> Score:
    if config.kind == "uniform":
        return lambda numbers, places: np.zeros((len(numbers), len(places)))
    if config.kind == "enhanced":
        return Enhanced(config, pool, seed)
    if config.kind == "bm25":
        return _Keywords(pool)
    if config.kind == "embedding":
        asked = pool.encoder.encode(pool.asked.texts, "query")
        documents = pool.encoder.encode(pool.corpus.texts(pool.places))
        return lambda numbers, places: asked[numbers] @ documents[pool.columns(places)].T
    if config.kind == "teacher":
        if pool.teacher is None:
            raise UserError("soft.kind=teacher needs negatives.teacher")
        remembered = Remembered(pool.teacher, pool.asked, pool.corpus)
        return lambda numbers, places: remembered(
            np.repeat(numbers, len(places)), np.tile(places, len(numbers))
        ).reshape(len(numbers), len(places))
    return _Neighbours(config, pool)


class _Neighbours:
    """Relevant documents of a query's neighbours, by GLLE or label propagation on the untouched encoder's vectors."""

    def __init__(self, config: EnhancementConfig, pool: Pool) -> None:
        numbers, places = pool.pairs.T
        self.labels, gold = np.unique(places, return_inverse=True)
        if len(numbers) * len(self.labels) > DENSE:
            raise UserError(
                f"soft.kind={config.kind}: a table of {len(numbers)} queries and {len(self.labels)} relevant documents "
                "is too large; choose another kind, or fewer queries with max_queries"
            )
        vectors = pool.encoder.encode(pool.asked.texts, "query")[numbers].astype(float)
        graph = distributions.neighbours(vectors, config.neighbours)
        if config.kind == "glle":
            self.table = distributions.glle(vectors, graph, gold, len(self.labels))
        else:
            self.table = distributions.propagated(graph, gold, len(self.labels))
        self.row = np.zeros(len(pool.asked), np.int64)
        self.row[numbers[::-1]] = np.arange(len(numbers))[::-1]  # a query's first pair

    def __call__(self, numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
        table = self.table[self.row[numbers]]
        columns = np.minimum(np.searchsorted(self.labels, places), len(self.labels) - 1)
        # A document that is relevant to no training query has no label; it counts as the least likely one.
        there = self.labels[columns] == places
        return np.where(there, table[:, columns], table.min(1, keepdims=True))


class _Keywords:
    """BM25 among the documents of the pool, as a sparse product."""

    def __init__(self, pool: Pool) -> None:
        texts = pool.corpus.texts(pool.places)
        self.pool, self.split = pool, segmenter("auto", texts)
        self.statistics = Statistics(map(self.bare, texts))
        words = list(self.statistics.frequency)
        self.words = {word: number for number, word in enumerate(words)}
        from scipy import sparse

        def rows(found: list[tuple[list[int], np.ndarray]]) -> Any:
            starts = np.concatenate([[0], np.cumsum([len(columns) for columns, _ in found])]).astype(np.int64)
            data = np.concatenate([values for _, values in found]) if found else np.zeros(0)
            columns = np.array([column for row, _ in found for column in row], dtype=np.int64)
            return sparse.csr_matrix((data, columns, starts), shape=(len(found), len(words)))

        documents = map(self.bare, texts)
        self.documents = rows([([self.words[word] for word in one.words], self.statistics.bm25(one))
                               for one in documents])  # fmt: skip
        asked = []
        for one in map(self.bare, pool.asked.texts):
            there = [number for number, word in enumerate(one.words) if word in self.words]
            asked.append(([self.words[one.words[number]] for number in there], one.counts[there].astype(float)))
        self.asked = rows(asked)

    def bare(self, text: str) -> Reading:
        """Words without vectors."""
        counts: dict[str, int] = {}
        for word in self.split(text):
            counts[word] = counts.get(word, 0) + 1
        return Reading(tuple(counts), np.array(list(counts.values()), dtype=float), np.zeros((len(counts), 0)))

    def __call__(self, numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
        found: np.ndarray = (self.asked[numbers] @ self.documents[self.pool.columns(places)].T).toarray()
        return found


class Enhanced:
    """The relevance head's logits over cosine of weighted vectors, shared term weights and BM25."""

    def __init__(self, config: EnhancementConfig, pool: Pool, seed: int) -> None:
        """Read all texts, weigh their words, fit the heads."""
        self.pool, self.keywords = pool, _Keywords(pool)
        self.folds = enhancement.Folds(len(pool.asked), config.folds, seed)
        self.terms = config.terms
        heads = self._term_heads() if config.terms == "contextual" else None
        self.sets = heads["document"].weights_.shape[0] if heads else 1
        columns: dict[str, int] = {}
        asked, self.query_vectors = self._weigh(pool.asked.texts, "query", heads, columns)
        documents, self.vectors = self._weigh(pool.corpus.texts(pool.places), "document", heads, columns)
        self.query_weights = [row.matrix(len(columns)) for row in asked]
        self.weights = [row.matrix(len(columns)) for row in documents]
        self.head = self._fit(seed)

    def features(self, number: int, columns: np.ndarray) -> np.ndarray:
        """Of a query with documents of the pool, [documents, 3]: cosine, shared weights, BM25; by its fold's heads."""
        own = self.folds.of[number] if self.sets > 1 else 0
        cosine = self.vectors[own][columns] @ self.query_vectors[own][number]
        shared = (self.weights[own][columns] @ self.query_weights[own][number].T).toarray()[:, 0]
        return np.stack([cosine, shared, self.keywords(np.array([number]), self.pool.places[columns])[0]], axis=-1)

    def __call__(self, numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
        columns = self.pool.columns(places)
        return np.stack(
            [self.head.logits(self.features(int(number), columns), self.folds.of[number]) for number in numbers]
        )

    def _read(self, texts: Sequence[str], kind: Kind) -> Iterator[tuple[int, Reading]]:
        memory = self.pool.memory
        if memory is None:
            yield from read(self.pool.encoder, texts, kind, self.keywords.split)
            return
        new = list(dict.fromkeys(text for text in texts if (kind, text) not in memory))
        for number, one in read(self.pool.encoder, new, kind, self.keywords.split):
            memory[kind, new[number]] = one
        for number, text in enumerate(texts):
            yield number, memory[kind, text]

    def _term_heads(self) -> dict[str, TermHeads]:
        """Heads for words of documents and of queries, from the training pairs."""
        pool, split = self.pool, self.keywords.split
        width = int(pool.encoder.model.config.hidden_size)
        found = {kind: TermHeads(self.folds.count, width) for kind in ("document", "query")}
        by_place: dict[int, list[int]] = {}
        by_query: dict[int, list[int]] = {}
        for number, place in pool.pairs.tolist():
            by_place.setdefault(place, []).append(number)
            by_query.setdefault(number, []).append(place)
        places = sorted(by_place)
        texts = pool.corpus.texts(places)
        words = {place: set(split(text)) for place, text in zip(places, texts, strict=True)}
        for at, one in self._read(texts, "document"):
            for number in by_place[places[at]]:
                asked = set(split(pool.asked.texts[number]))
                found["document"].add(self.folds.of[number], one.vectors, np.isin(one.words, list(asked)))
        for number, one in self._read(pool.asked.texts, "query"):
            for place in by_query.get(number, ()):
                found["query"].add(self.folds.of[number], one.vectors, np.isin(one.words, list(words[place])))
        return {kind: heads.fit() for kind, heads in found.items()}

    def _weigh(
        self, texts: Sequence[str], kind: Kind, heads: dict[str, TermHeads] | None, columns: dict[str, int]
    ) -> tuple[list[Weighted], np.ndarray]:
        """Term weights as rows and weighted vectors [sets, texts, hidden] of texts, one set for each fold's heads."""
        readings: list[Reading | None] = [None] * len(texts)
        weights: list[np.ndarray] = [np.zeros((self.sets, 0))] * len(texts)
        vectors = np.zeros((self.sets, len(texts), int(self.pool.encoder.model.config.hidden_size)), np.float32)
        for at, one in self._read(texts, kind):
            weights[at] = heads[kind].weights(one.vectors) if heads else self._fixed(kind, one)[None]
            vectors[:, at] = embedding(one, weights[at])
            readings[at] = Reading(one.words, one.counts, np.zeros((len(one.words), 0)))
        rows = [Weighted(columns) for _ in range(self.sets)]
        for found, each in zip(readings, weights, strict=True):
            assert found is not None
            for own in range(self.sets):
                rows[own].add(found, each[own])
        return rows, vectors

    def _fixed(self, kind: Kind, one: Reading) -> np.ndarray:
        statistics = self.keywords.statistics
        if kind == "query":
            return statistics.rarity(one)
        return statistics.keyword(one) if self.terms == "keyword" else statistics.bm25(one)

    def _fit(self, seed: int) -> enhancement.RelevanceHead:
        """The relevance head from relevant documents, mined negatives and random documents of the training queries."""
        draws, features, labels, folds = np.random.default_rng([seed, 8]), [], [], []
        for number in range(len(self.pool.asked)):
            relevant = self.pool.asked.relevant[number]
            own = [place for query, place in self.pool.pairs[self.pool.pairs[:, 0] == number].tolist()]
            hard = list(self.pool.negatives[number])[:_EASY]
            easy = [int(place) for place in draws.choice(self.pool.places, _EASY) if int(place) not in relevant]
            places = np.array([*own, *hard, *easy], dtype=np.int64)
            features.append(self.features(number, self.pool.columns(places)))
            labels += [1] * len(own) + [0] * (len(hard) + len(easy))
            folds += [self.folds.of[number]] * len(places)
        head = enhancement.RelevanceHead(self.folds)
        return head.fit(np.concatenate(features), np.array(labels), np.array(folds))


@torch.inference_mode()
def read(
    encoder: Encoder, texts: Sequence[str], kind: Kind, split: Callable[[str], list[str]], batch: int = 64
) -> Iterator[tuple[int, Reading]]:
    """Number and words of every text, with contextual vectors; in batches of like lengths, so in another order.

    What lies beyond the encoder's length has no vector and is left out.
    """
    prefix = encoder.settings.query_prefix if kind == "query" else encoder.settings.document_prefix
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        found = encoder.tokenizer(
            [prefix + texts[number] for number in numbers], truncation=True, max_length=encoder.max_length,
            padding=True, return_offsets_mapping=True, return_tensors="pt",
        )  # fmt: skip
        ids, mask = (found[key].to(encoder.device) for key in ("input_ids", "attention_mask"))
        states = encoder.states(ids, mask).float().cpu().numpy()
        for row, number in enumerate(numbers):
            offsets = [
                (begin - len(prefix), end - len(prefix)) if begin >= len(prefix) else (0, 0)
                for begin, end in found["offset_mapping"][row].tolist()
            ]
            yield number, reading(texts[number], offsets, states[row], split)
