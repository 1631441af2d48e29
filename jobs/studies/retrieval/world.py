"""The study's collection: a part of medquad without titles, and everything that a frozen encoder says of its texts."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raylm.config import build
from raylm.retrieval.bm25 import BM25
from raylm.retrieval.config import RetrieverConfig
from raylm.retrieval.corpus import Corpus, of_judgments
from raylm.retrieval.data import Collection
from raylm.retrieval.encoder import Encoder
from raylm.retrieval.looks import score
from raylm.retrieval.measures import means
from raylm.retrieval.prepare import Data, check, documents, load
from raylm.seeds import stable_seed
from raylm.softlabels.terms import Reading, reading
from raylm.softlabels.words import segmenter

QUERIES = {"train": 288, "dev": 80, "test": 160}
DOCUMENTS, BESIDE = 1_500, 2
"""Of the whole collection, and of the documents on a query's disease that answer another question."""
RELEVANT = 2
"""Grade of a document that answers; 1 has the same disease and another kind of question."""


def collection(folder: Path, source: str) -> Path:
    """Write the part of medquad that the study uses, once: queries drawn by a seed, what answers them, a few documents
    on the same diseases, and random ones up to DOCUMENTS. Train, dev and test have different diseases."""
    if (folder / "queries.jsonl").exists():
        return folder
    whole = Collection(source, titles=False)
    texts, queries, wanted = {doc.id: doc.text for doc in whole.documents()}, whole.queries(), dict[str, None]()
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    kept: list[str] = []
    for split, count in QUERIES.items():
        judged = whole.judgments(f"{split}_graded")
        good = [query for query, grades in judged.items() if max(grades.values()) >= RELEVANT]
        chosen = sorted(good, key=lambda query: stable_seed(0, split, query))[:count]
        judged = {query: _fewer(judged[query]) for query in chosen}
        lines = [f"{query}\t{name}\t{grade}" for query in chosen for name, grade in judged[query].items()]
        (folder / f"qrels/{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n")
        kept += chosen
        wanted |= {name: None for query in chosen for name in judged[query]}
    rest = sorted((name for name in texts if name not in wanted), key=lambda name: stable_seed(0, "document", name))
    names = [*wanted, *rest[: max(0, DOCUMENTS - len(wanted))]]
    rows = [{"_id": name, "title": "", "text": texts[name]} for name in sorted(names)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = "".join(json.dumps({"_id": name, "text": queries[name]}) + "\n" for name in kept)
    (folder / "queries.jsonl").write_text(asked)
    return folder


def _fewer(grades: dict[str, int]) -> dict[str, int]:
    """All that answers, and a few of the rest."""
    rest = sorted((name for name, grade in grades.items() if grade < RELEVANT), key=lambda name: stable_seed(0, name))
    return {name: grade for name, grade in grades.items() if grade >= RELEVANT or name in rest[:BESIDE]}


@dataclass
class World:
    """The collection, read once, and the untouched encoder's output for all of its texts."""

    settings: dict[str, Any]
    encoder: Encoder
    corpus: Corpus
    bm25: BM25
    memory: dict[tuple[str, str], Reading] = field(default_factory=dict)
    """Words with contextual vectors, by kind and text."""
    vectors: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    """Unit vectors of the untouched encoder, by kind and text."""

    def data(self, config: RetrieverConfig) -> Data:
        """Queries and pairs of a run."""
        return load(config, Collection(config.data, titles=config.titles), self.corpus)

    def teacher(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """The untouched encoder as a teacher: cosines from memory."""
        asked = np.stack([self.vectors["query", text] for text in queries])
        found: np.ndarray = (asked * np.stack([self.vectors["document", text] for text in documents])).sum(1)
        return found


def world(out: Path, settings: dict[str, Any]) -> World:
    """Read everything; the encoder's output comes from a file where an earlier run left it."""
    folder = collection(out / "collection", str(Path(os.environ["RAYLM_DATA"], "medquad")))
    settings = {**settings, "data": str(folder), "relevant_from": RELEVANT, "test": "test"}
    config = build(RetrieverConfig, settings)
    found, _, _ = check(config)
    encoder = Encoder.load(config.model, max_length=config.max_length)
    corpus = Corpus.of(documents(config, found, encoder.tokenizer))
    texts = [text for block in corpus.blocks() for text in block]
    made = World(settings, encoder, corpus, BM25.of(texts, segment="words", stem="english"))
    encoder.adapt()
    encoder.adapter = None
    _remember(made, list(found.queries().values()), "query", out / "queries.pt")
    _remember(made, texts, "document", out / "documents.pt")
    return made


def references(made: World) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of every test query by BM25 and by the untouched encoder."""
    folder = Collection(made.settings["data"])
    asked = of_judgments(folder.queries(), folder.judgments("test"), made.corpus, RELEVANT)
    places, _ = made.bm25.search(asked.texts, 100)
    documents = np.stack([made.vectors["document", text] for text in made.corpus.texts(range(len(made.corpus)))])
    scores = np.stack([made.vectors["query", text] for text in asked.texts]) @ documents.T
    found = {"bm25": places, "base": np.argsort(-scores, axis=1, kind="stable")[:, :100]}
    return {
        name: score(made.corpus, asked, {
            query: [made.corpus.ids[place] for place in row if place >= 0]
            for query, row in zip(asked.ids, rows, strict=True)
        })
        for name, rows in found.items()
    }  # fmt: skip


def chinese() -> dict[str, dict[str, float]]:
    """Figures of cmrc2018's test queries by BM25 with jieba's words: a check of the path, since it is near 1."""
    found = Collection(str(Path(os.environ["RAYLM_DATA"], "cmrc2018_retrieval")))
    found.census(["train", "test"])
    corpus = Corpus.of(found.documents())
    asked = of_judgments(found.queries(), found.judgments("test"), corpus)
    places, _ = BM25.of(corpus.texts(range(len(corpus)))).search(asked.texts, 100)
    return score(corpus, asked, {
        query: [corpus.ids[place] for place in row if place >= 0] for query, row in zip(asked.ids, places, strict=True)
    })  # fmt: skip


@torch.inference_mode()
def _remember(made: World, texts: list[str], kind: Any, file: Path) -> None:
    """One pass over texts: pooled vectors into the encoder's memory, words into the soft targets' memory."""
    encoder, tokens, split = made.encoder, made.encoder.tokens(texts, kind), segmenter("words")
    states: dict[int, torch.Tensor] = torch.load(file, weights_only=True) if file.exists() else {}
    told = len(states)
    for places in tokens.by_length(32):
        if places[0] in states:
            continue
        ids, mask = tokens.batch(places)
        for place, row, length in zip(places, encoder.states(ids, mask), mask.sum(1).tolist(), strict=True):
            states[place] = row[:length].half().clone()
        if len(states) - told >= 256 or len(states) == len(texts):
            told = len(states)
            print(f"{kind}: {told} of {len(texts)}", flush=True)
            torch.save(states, file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
    assert encoder._pooled is not None
    offsets = encoder.tokenizer(texts, truncation=True, max_length=encoder.max_length, return_offsets_mapping=True)
    for place, text in enumerate(texts):
        rows = states[place].float()
        pooled = rows.mean(0)
        encoder._pooled[np.array(tokens.ids[place], dtype=np.int64).tobytes()] = pooled
        made.vectors[kind, text] = torch.nn.functional.normalize(pooled, dim=0).numpy()
        made.memory[kind, text] = reading(text, offsets["offset_mapping"][place], rows.numpy(), split)


def mean_ndcg(figures: dict[str, dict[str, float]]) -> float:
    """Of all queries."""
    return means(figures)["nDCG@10"]
