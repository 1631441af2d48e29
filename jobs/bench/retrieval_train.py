"""Training pairs/s of a retriever over sentence-transformers' trainer: same model, batch, precision, loss and data."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from jobs.studies.retrieval.mnrl import rows, train
from raylm.config import build
from raylm.retrieval.bm25 import BM25
from raylm.retrieval.config import RetrieverConfig
from raylm.retrieval.corpus import Corpus
from raylm.retrieval.encoder import Encoder
from raylm.retrieval.mine import negatives
from raylm.retrieval.prepare import check, documents, load
from raylm.retrieval.run import Run

QUERIES, BATCH, LENGTH, WORDS = 64, 16, 64, 40
"""Pairs of a measurement, queries of a batch, tokens of a text that are read, words of a document."""


def train_ratio(repeats: int, queries: int = QUERIES) -> tuple[dict[str, list[float]], list[dict[str, Any]]]:
    """Ratios of pairs/s and the rows behind them; both sides alternate and train all-MiniLM on a query, its document
    and one hard negative each, in fp32 with AdamW. Figures on dev are left out of the time on both sides."""
    with tempfile.TemporaryDirectory() as folder:
        found = [_once(Path(folder), repeat, queries) for repeat in range(repeats)]
    return {"train_vs_sentence_transformers": [row["ratio"] for row in found]}, found


def _once(folder: Path, repeat: int, queries: int) -> dict[str, Any]:
    run = _run(folder, queries)
    data = rows(run)
    start = time.monotonic()
    run.encoder.train()
    for step in range(run.steps):
        run.step(step)
    ours = time.monotonic() - start
    theirs = train(_plain(run.config), data, run.config, 1)
    pairs = len(run.data.pairs)
    return {
        "repeat": repeat, "ratio": theirs / ours, "ours": ours, "theirs": theirs, "pairs": pairs,
        "pairs_per_second_ours": pairs / ours,
        "pairs_per_second_theirs": pairs / theirs, "threads": torch.get_num_threads(),
    }  # fmt: skip


def _run(folder: Path, queries: int) -> Run:
    """A run on made-up texts, every document of which has words of its own."""
    corpus = [
        {"_id": f"d{n}", "title": "", "text": " ".join(f"{n * 7 + m * 13} topic" for m in range(WORDS // 2))}
        for n in range(2 * queries)
    ]
    asked = [{"_id": f"q{n}", "text": f"which text has {n * 7} and {n * 7 + 13}"} for n in range(queries + 1)]
    (folder / "qrels").mkdir(exist_ok=True)
    for name, table in (("corpus", corpus), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    for split, numbers in (("train", range(queries)), ("dev", [queries])):
        (folder / f"qrels/{split}.tsv").write_text("".join(f"q{n}\td{n}\t1\n" for n in numbers))
    config = build(RetrieverConfig, {
        "data": str(folder), "batch_size": BATCH, "max_length": LENGTH, "epochs": 1, "negatives": {"hard": 1},
        "loss": "infonce_hard",
    })  # fmt: skip
    collection, _, _ = check(config)
    texts = Corpus.of(documents(config, collection, Encoder.load(config.model).tokenizer))
    data = load(config, collection, texts)
    index = BM25.of(texts.texts(range(len(texts))))
    return Run(config, data, negatives(config.negatives, data.train, texts, index))


def _plain(config: RetrieverConfig) -> Any:
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as folder:
        Encoder.load(config.model, max_length=config.max_length).save(folder)
        return SentenceTransformer(folder, device="cpu")
