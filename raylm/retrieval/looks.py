"""What a run sees of itself: dev figures, its own hard negatives, and the evaluation before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from raylm.retrieval.config import RetrieverConfig
from raylm.retrieval.corpus import Corpus, Queries
from raylm.retrieval.data import Judgments, whole
from raylm.retrieval.encoder import Encoder
from raylm.retrieval.gather import gathered
from raylm.retrieval.measures import means, measure
from raylm.retrieval.negatives import Rule, Teacher, judge, nearest
from raylm.retrieval.prepare import Data

DEPTH = 100
"""Documents of a ranking."""


class Looks:
    """Encodes the corpus with all ranks together; every rank then knows the same."""

    def __init__(
        self,
        config: RetrieverConfig,
        data: Data,
        encoder: Encoder,
        ranks: tuple[int, int],
        teacher: Teacher | None = None,
    ) -> None:  # fmt: skip
        """Look at an encoder in training."""
        self.config, self.data, self.encoder, (self.rank, self.world) = config, data, encoder, ranks
        self.teacher = teacher
        self.rows: list[dict[str, float]] = []
        """epoch and the figures on dev, before the first epoch as well."""
        self.refreshes: list[dict[str, Any]] = []
        """step, kept, new_share, dropped_by_teacher; a row every time that negatives were found anew."""

    def look(self, epoch: int) -> bool:
        """Figures on dev; returns whether nDCG@10 is the best so far."""
        before = max((row["nDCG@10"] for row in self.rows), default=-1.0)
        figures = means(score(self.data.corpus, self.data.dev, self.rankings(self.encoder, self.data.dev)))
        self.rows.append({"epoch": epoch, **figures})
        return figures["nDCG@10"] > before

    def evaluate(self, encoder: Encoder) -> dict[str, dict[str, float]]:
        """Figures of every query of the test split, or of dev where there is none."""
        part = self.data.test if self.data.test is not None else self.data.dev
        return score(self.data.corpus, part, self.rankings(encoder, part))

    def rankings(self, encoder: Encoder, asked: Queries) -> dict[str, list[str]]:
        """Query id to the ids of the nearest documents; a chunk stands for its document, the nearest one counts."""
        corpus = self.data.corpus
        places, _ = nearest(encoder.encode(asked.texts, "query"), self.vectors(encoder), 2 * DEPTH)
        return {
            name: list(dict.fromkeys(_document(corpus, int(place)) for place in row))[:DEPTH]
            for name, row in zip(asked.ids, places, strict=True)
        }

    def vectors(self, encoder: Encoder) -> np.ndarray:
        """Of the whole corpus, [documents, dimension]; every rank encodes its share of it."""
        corpus = self.data.corpus
        own = np.arange(self.rank, len(corpus), self.world)
        parts = [encoder.encode(corpus.texts(own[start : start + 4096])) for start in range(0, len(own), 4096)]
        mine = torch.from_numpy(np.concatenate(parts) if parts else np.zeros((0, encoder.dimension), np.float32))
        if self.world > 1:
            mine = gathered(mine.to(encoder.device), len(corpus), self.rank, self.world).cpu()
        found: np.ndarray = mine.numpy()
        return found

    def mine(self, step: int, before: list[list[int]]) -> list[list[int]]:
        """The nearest documents of every training query that are not relevant: places by query, best first."""
        rule = self.config.negatives
        asked = self.data.train
        limits = Rule(rule.depth, rule.skip, rule.keep, rule.teacher_margin)
        most = min(len(self.data.corpus), rule.depth + max(map(len, asked.relevant)))
        found = nearest(self.encoder.encode(asked.texts, "query"), self.vectors(self.encoder), most)
        table = judge(asked, self.data.corpus, "ann", found, limits, teacher=self.teacher)
        at = {name: place for place, name in enumerate(self.data.corpus.ids)}
        numbers = {name: number for number, name in enumerate(asked.ids)}
        rows: list[list[int]] = [[] for _ in asked.ids]
        kept = table.filter(table["kept"])
        for query, document in zip(kept["query"].to_pylist(), kept["document"].to_pylist(), strict=True):
            rows[numbers[query]].append(at[document])
        new = sum(len(set(row) - set(old)) for row, old in zip(rows, before, strict=True))
        dropped = table["reason"].to_pylist().count("teacher")
        self.refreshes.append({
            "step": step, "kept": kept.num_rows, "new_share": new / max(1, kept.num_rows),
            "dropped_by_teacher": dropped,
        })  # fmt: skip
        return rows

    def overlong(self) -> dict[str, int]:
        """Texts that are cut, by what they are."""
        documents = sum(self.encoder.truncated(block) for block in self.data.corpus.blocks())
        return {"documents": documents, "train queries": self.encoder.truncated(self.data.train.texts, "query")}


def score(corpus: Corpus, asked: Queries, rankings: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Figures of every query, by whole documents."""
    judged: Judgments = {
        name: {_document(corpus, place): grade for place, grade in grades.items()}
        for name, grades in zip(asked.ids, asked.grades, strict=True)
    }
    return measure(rankings, judged, asked.relevant_from)


def _document(corpus: Corpus, place: int) -> str:
    name = corpus.ids[place]
    return name if name in corpus.places else whole(name)
