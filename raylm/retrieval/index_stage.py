"""The index stage: documents are encoded shard by shard on a pool of Ray Data actors, and then built into an index."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raylm.errors import UserError
from raylm.retrieval.data import Collection, Document, chunks
from raylm.retrieval.index import Index, Source
from raylm.retrieval.index_config import IndexConfig
from raylm.storage import Manifest, StageRun, Store
from raylm.units import Unit, UnitsReport, check_failures, read_unit, run_units, unit_key

if TYPE_CHECKING:
    from raylm.retrieval.encoder import Encoder

LOOKED_AT = 2_000
"""Documents whose lengths are looked at before anything is encoded."""
EXAMPLES = 12


def run(config: IndexConfig) -> Manifest:
    """Build an index; a second call with the same config and inputs returns at once, an interrupted one goes on.

    Raises:
        UserError: a malformed collection, an encoder that cannot be had, too many documents that are too long.
    """
    from raylm import report

    collection = Collection(config.data, titles=config.titles)
    census = collection.census(())
    encoder = load_encoder(config)
    inputs = {"corpus": collection.digest(()), "encoder": encoder.hash}
    stage = StageRun("index", config, config.out, inputs)
    if stage.finished is None:
        if not config.chunk:
            check_lengths(encoder, collection, config)
        units = list(shards(collection, config.shard))
        done = run_units(
            units, IndexWorker, {"config": config}, stage.store, config.compute, label="index", noun="shards",
            note=lambda summary: f"{summary['rows'] / summary['encoding']:.0f} documents/s a worker",
        )  # fmt: skip
        check_failures(done, len(units), 0.0, stage.store, "shards")
        found = {"empty": len(census.empty), "repeated_texts": census.repeated_texts}
        _finish(stage, config, collection, encoder, units=units, done=done, found=found)
    report.for_stage("index", stage.store)
    assert stage.finished is not None
    return stage.finished


def load_encoder(config: IndexConfig) -> Encoder:
    """The encoder of a config, on a CPU or, for an actor with a GPU, on that."""
    from raylm.retrieval.encoder import Encoder

    device = "cuda" if config.compute.gpus else "cpu"
    return Encoder.load(config.model, config.revision, device, max_length=config.max_length)


def shards(collection: Collection, size: int) -> Iterator[Unit]:
    """Documents in units of work, in the corpus' order."""
    held: list[Document] = []
    for document in collection.documents():
        held.append(document)
        if len(held) == size:
            yield _unit(held)
            held = []
    if held:
        yield _unit(held)


def check_lengths(encoder: Encoder, collection: Collection, config: IndexConfig) -> None:
    """Refuse a collection whose first documents are often longer than what the encoder reads.

    Raises:
        UserError: says how many, and what would help.
    """
    texts = [document.text for document, _ in zip(collection.documents(), range(LOOKED_AT), strict=False)]
    _refuse_overlong(encoder.truncated(texts), len(texts), encoder.max_length, config)


class IndexWorker:
    """Encodes shards; one encoder an actor."""

    def __init__(self, config: IndexConfig) -> None:
        self.config, self.encoder = config, None  # type: tuple[IndexConfig, Encoder | None]
        self.busy = asyncio.Lock()

    async def start(self) -> None:
        """Load the encoder."""
        import torch

        torch.set_num_threads(max(1, int(self.config.compute.cpus)))
        self.encoder = await asyncio.to_thread(load_encoder, self.config)

    async def run(self, unit: Unit, store: Store) -> tuple[pa.Table, dict[str, Any]]:
        """Vectors of a shard's documents or their pieces: rows of id, text, vector."""
        assert self.encoder is not None
        async with self.busy:  # more shards at once would only share the same cores
            return await asyncio.to_thread(encode, self.encoder, unit, self.config)

    async def close(self) -> None:
        """Free the encoder."""
        self.encoder = None


def encode(encoder: Encoder, unit: Unit, config: IndexConfig) -> tuple[pa.Table, dict[str, Any]]:
    """Rows of a shard, and how many of its documents were longer than what is read."""
    start = time.monotonic()
    documents = [Document(*pair) for pair in zip(unit.payload["ids"], unit.payload["texts"], strict=True)]
    texts = [document.text for document in documents]
    overlong = encoder.truncated(texts)
    if config.chunk and overlong:
        room = encoder.max_length - len(encoder.tokenizer.tokenize(encoder.settings.document_prefix))
        documents = [
            piece for document in documents for piece in chunks(document, encoder.tokenizer, room, config.chunk_overlap)
        ]
        texts = [document.text for document in documents]
    vectors = encoder.encode(texts, "document", config.batch_size)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), encoder.dimension)
    table = pa.table({"id": [document.id for document in documents], "text": texts, "vector": column})
    summary = {"documents": len(unit.payload["ids"]), "rows": len(documents), "overlong": overlong}
    return table, {**summary, "encoding": max(time.monotonic() - start, 1e-9)}


def _finish(
    stage: StageRun, config: IndexConfig, collection: Collection, encoder: Encoder, *,
    units: list[Unit], done: UnitsReport, found: dict[str, int],
) -> None:  # fmt: skip
    store, start = stage.store, time.monotonic()
    summaries = list(done.summaries.values())
    totals = {name: sum(item[name] for item in summaries) for name in ("documents", "rows", "overlong")}
    if not config.chunk:
        _refuse_overlong(totals["overlong"], totals["documents"], encoder.max_length, config)
    table = pa.concat_tables(read_unit(store, unit.key) for unit in units)
    flat = table.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors = flat.reshape(table.num_rows, encoder.dimension)
    asked = _some_queries(collection, config.recall_queries)
    queries = encoder.encode(list(asked.values()), "query")
    ids, texts = table.column("id").to_pylist(), table.column("text").to_pylist()
    source = Source.of(encoder, config.model, config.revision)
    index = Index.build(ids, texts, vectors, source=source, settings=config.index, queries=queries)
    index = replace(index, facts={**index.facts, "chunked": config.chunk})
    index.save(f"{store.url}/index")
    _write_looks(store, index, asked, queries, texts)
    facts = {**index.facts, **totals, **found, "kind": index.kind, "dimension": index.dimension}
    new = len(units) - done.resumed
    rate = totals["rows"] / max(sum(item["encoding"] for item in summaries), 1e-9)
    timing = {"seconds": done.seconds, "building": time.monotonic() - start, "resumed": done.resumed}
    stage.finish(
        totals["rows"],
        timing={**timing, "shards": new, "rows_per_second_a_worker": rate},
        folders=("data", "index/files"),
        files=("index/index.json",),
        model={"name": config.model, "revision": encoder.hash},
        figures=facts,
    )


def _some_queries(collection: Collection, count: int) -> dict[str, str]:
    """Up to `count` of the collection's queries, the same ones every time."""
    queries = collection.queries()
    order = np.random.default_rng(0).permutation(len(queries))[:count]
    names = list(queries)
    return {names[place]: queries[names[place]] for place in sorted(order.tolist())}


def _write_looks(store: Store, index: Index, asked: dict[str, str], queries: np.ndarray, texts: list[str]) -> None:
    """What the report shows: lengths, scores of the nearest and of any document, and examples."""
    draws = np.random.default_rng(0)
    lengths = [len(texts[place].split()) for place in draws.permutation(len(texts))[:5_000]]
    store.write_table("data/lengths.parquet", pa.table({"words": sorted(lengths)}))
    hits = index.search(queries, 10)
    drawn = [index.base.ann.vectors()[place] for place in draws.integers(0, len(texts), len(queries))]
    anyone = [float(query @ row) for query, row in zip(queries, drawn, strict=True)]
    nearest, tenth = ([float(row[place].score) for row in hits] for place in (0, -1))
    store.write_table("data/scores.parquet", pa.table({"nearest": nearest, "tenth": tenth, "any": anyone}))
    words = list(asked.values())
    shown = np.linspace(0, len(words) - 1, min(EXAMPLES, len(words))).astype(int).tolist()
    rows = [
        {"query": words[place], "ids": [hit.id for hit in hits[place][:3]],
         "scores": [hit.score for hit in hits[place][:3]],
         "texts": [index.text(hit.id)[:300] for hit in hits[place][:3]]}
        for place in shown
    ]  # fmt: skip
    store.write_table("data/examples.parquet", pa.Table.from_pylist(rows))


def _refuse_overlong(overlong: int, total: int, length: int, config: IndexConfig) -> None:
    if overlong > config.max_overlong_share * total:
        raise UserError(
            f"{overlong} of {total} documents have more than the {length} tokens that the encoder reads, and "
            f"max_overlong_share={config.max_overlong_share} of them may: set chunk=true to cut them into pieces, "
            "raise max_length, or raise max_overlong_share to read their beginnings alone"
        )


def _unit(documents: list[Document]) -> Unit:
    ids, texts = [document.id for document in documents], [document.text for document in documents]
    content = hashlib.sha256("\x00".join([*ids, *texts]).encode()).hexdigest()
    return Unit(unit_key("index", content), {"ids": ids, "texts": texts})
