"""What a training run reads: the collection's texts, its queries by split, and training pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raylm.errors import UserError
from raylm.retrieval.config import RetrieverConfig
from raylm.retrieval.corpus import Corpus, Queries, pairs, pieces, queries
from raylm.retrieval.data import Census, Collection, Document
from raylm.seeds import stable_seed


@dataclass(frozen=True)
class Data:
    """Texts and judgments of a run."""

    corpus: Corpus
    train: Queries
    dev: Queries
    test: Queries | None
    pairs: np.ndarray
    """[pairs, 2] int64: number of a training query, place of a relevant document."""
    overlaps: int
    """Training queries that were left out because dev or test asks the same."""


def check(config: RetrieverConfig) -> tuple[Collection, Census, str]:
    """Look at the collection before anything else is done: it, what it holds, its digest.

    Raises:
        UserError: as `Collection` and `Collection.census`.
    """
    collection = Collection(config.data, titles=config.titles)
    splits = [split for split in (config.train, config.dev, config.test) if split]
    return collection, collection.census(splits, allow_missing=config.allow_missing), collection.digest(splits)


def documents(config: RetrieverConfig, collection: Collection, tokenizer: Any) -> Iterator[Document]:
    """The documents, or their chunks."""
    if config.long_documents == "chunk":
        return pieces(collection, tokenizer, config.max_length, config.chunk_overlap)
    return collection.documents()


def load(config: RetrieverConfig, collection: Collection, corpus: Corpus) -> Data:
    """Queries and pairs over a corpus that was made by `documents`.

    Raises:
        UserError: no training query, no dev query, or too few documents for the negatives asked for.
    """
    train = queries(collection, config.train, corpus, config.relevant_from)
    held = {
        split: queries(collection, name, corpus, config.relevant_from)
        for split in ("dev", "test")
        if (name := getattr(config, split))
    }
    taken = {text for part in held.values() for text in part.texts}
    names = {name for part in held.values() for name in part.ids}
    clean = [n for n in range(len(train)) if train.ids[n] not in names and train.texts[n] not in taken]
    overlaps, train = len(train) - len(clean), train.take(clean)
    order = sorted(range(len(train)), key=lambda n: stable_seed(config.seed, "queries", train.ids[n]))
    if "dev" not in held:
        count = max(1, round(config.dev_share * len(order)))
        held["dev"], order = train.take(sorted(order[:count])), order[count:]
    if config.max_queries:
        order = order[: config.max_queries]
    train = train.take(sorted(order))
    for name, part in (("train", train), ("dev", held["dev"])):
        if not len(part):
            raise UserError(
                f"{config.data}: no {name} query has a relevant document (relevant_from={config.relevant_from})"
            )
    most = max(map(len, train.relevant))
    if len(corpus) - most < config.negatives.hard:
        raise UserError(
            f"{config.data}: {len(corpus)} documents are too few for negatives.hard={config.negatives.hard}"
        )
    return Data(corpus, train, held["dev"], held.get("test"), pairs(train, corpus), overlaps)


def opened(config: RetrieverConfig, folder: Path) -> Data:
    """The data of a run whose corpus was written to `folder`."""
    return load(config, Collection(config.data, titles=config.titles), Corpus.open(folder / "corpus.arrow"))


def summary(census: Census, data: Data, overlong: dict[str, int]) -> dict[str, Any]:
    """Counts for the manifest."""
    found = asdict(census)
    missing = {key: {split: len(names) for split, names in found.pop(key).items()}
               for key in ("missing_documents", "missing_queries")}  # fmt: skip
    queries = {"train": len(data.train), "dev": len(data.dev), "test": len(data.test) if data.test else 0}
    return {
        **found, **missing, "empty": len(census.empty), "pieces": len(data.corpus), "pairs": len(data.pairs),
        "queries_used": queries, "overlaps": data.overlaps, "overlong": overlong,
    }  # fmt: skip
