"""The evaluate-retrieval stage: rank a collection's documents for judged queries, and measure it query by query."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raylm.errors import UserError
from raylm.evaluation.stats import bootstrap
from raylm.progress import Progress
from raylm.retrieval import fusion
from raylm.retrieval.data import Collection, Judgments, whole
from raylm.retrieval.fusion import Hit
from raylm.retrieval.index import Index
from raylm.retrieval.index_config import EvaluateRetrievalConfig
from raylm.retrieval.index_files import describe
from raylm.retrieval.lexical import Lexical
from raylm.retrieval.rankings import check_names, per_query, read_run, write_run
from raylm.retrieval.significance import compare
from raylm.storage import Manifest, StageRun, Store

BATCH = 256
"""Queries that are ranked at a time."""
_PIECES = 3
"""Times as many pieces as documents that a chunked index is asked for."""
QUERIES, RUN, PARTS = "data/queries.parquet", "data/run.trec", "parts"


@dataclass(frozen=True)
class Asked:
    """What is measured."""

    queries: dict[str, str]
    judgments: Judgments
    left_out: dict[str, int]
    """Queries without a relevant document, and judgments of what is missing."""


def run(config: EvaluateRetrievalConfig) -> Manifest:
    """Measure one ranking; a second call with the same config and inputs returns at once.

    Raises:
        UserError: bad input, such as judgments that name missing documents, or another encoder than the index' own.
    """
    from raylm import report

    collection = Collection(config.data, titles=config.titles)
    check_names(config.metrics)
    asked = ask(collection, config)
    baseline = _Baseline(config.baseline, asked, config.metrics) if config.baseline else None
    inputs = {"collection": collection.digest((config.split,)), **_identity(config)}
    if baseline is not None:
        inputs["baseline"] = baseline.digest
    stage = StageRun("evaluate_retrieval", config, config.out, inputs)
    if stage.finished is None:
        start = time.monotonic()
        rankings = ranked(collection, config, asked.queries, stage.store)
        _finish(stage, config, asked, rankings, baseline=baseline, seconds=time.monotonic() - start)
    report.for_stage("evaluate_retrieval", stage.store, {"baseline": baseline.store} if baseline else None)
    assert stage.finished is not None
    return stage.finished


def ask(collection: Collection, config: EvaluateRetrievalConfig) -> Asked:
    """The split's queries that have a relevant document, or a sample of them, with their judgments."""
    census = collection.census((config.split,), allow_missing=config.allow_missing)
    judged = collection.usable(config.split)
    kept = {query: rows for query, rows in judged.items() if max(rows.values(), default=0) >= config.relevant}
    if not kept:
        raise UserError(f"{config.data}: split {config.split} has no query with a document of grade {config.relevant}")
    if config.max_queries and config.max_queries < len(kept):
        order = np.random.default_rng(config.seed).permutation(len(kept))[: config.max_queries]
        names = sorted(kept)
        kept = {names[place]: kept[names[place]] for place in sorted(order.tolist())}
    texts = collection.queries()
    left_out = {
        "without_relevant": census.unjudged_queries[config.split],
        "missing_documents": len(census.missing_documents[config.split]),
        "missing_queries": len(census.missing_queries[config.split]),
    }
    return Asked({query: texts[query] for query in kept}, kept, left_out)


def ranked(
    collection: Collection, config: EvaluateRetrievalConfig, queries: dict[str, str], store: Store
) -> dict[str, list[Hit]]:
    """Query id to its documents, best first.

    Every batch is kept in the store until the end, so that a killed run goes on behind the last one.
    """
    if config.run:
        found = read_run(_bytes(config.run, "run").decode("utf-8", "replace"), config.run)
        return {query: found[query][: config.depth] for query in queries if query in found}
    names, rankings = list(queries), dict[str, list[Hit]]()
    for file in store.names(PARTS):
        rankings |= {query: [Hit(*hit) for hit in hits] for query, hits in store.read_json(f"{PARTS}/{file}").items()}
    rest = [name for name in names if name not in rankings]
    ask_for = _asker(collection, config)
    with Progress("evaluate-retrieval", len(rest), "queries") as progress:
        for start in range(0, len(rest), BATCH):
            part = rest[start : start + BATCH]
            found = dict(zip(part, ask_for([queries[name] for name in part]), strict=True))
            rankings |= found
            store.write_json(f"{PARTS}/{len(rankings):09d}.json", found)
            progress.advance(len(part))
    return {name: rankings[name] for name in names}


def documents_of(hits: Sequence[Hit], depth: int) -> list[Hit]:
    """Pieces to documents, each where its best piece is."""
    found: dict[str, Hit] = {}
    for hit in hits:
        found.setdefault(whole(hit.id), Hit(whole(hit.id), hit.score))
    return list(found.values())[:depth]


def _asker(collection: Collection, config: EvaluateRetrievalConfig) -> Any:
    """Texts of queries to their rankings."""
    if not config.index:
        documents = list(collection.documents())
        ids = np.array([document.id for document in documents], dtype=object)
        lexical = Lexical.of([document.text for document in documents], config.bm25)
        return lambda texts: [_by_words(lexical, ids, text, config.depth) for text in texts]
    index = Index.open(config.index)
    encoder = None if config.mode == "bm25" else index.encoder(config.model)
    if not index.facts.get("chunked"):
        return lambda texts: index.search_text(texts, encoder, config.depth, config.mode)
    return lambda texts: [
        documents_of(hits, config.depth)
        for hits in index.search_text(texts, encoder, _PIECES * config.depth, config.mode)
    ]


def _by_words(lexical: Lexical, ids: np.ndarray, text: str, k: int) -> list[Hit]:
    scores = lexical.scores(text)
    scores = np.where(scores > 0, scores, -np.inf)
    return [Hit(ids[place], float(scores[place])) for place in fusion.best(scores, ids, k)]


class _Baseline:
    """Values of the evaluation to compare with."""

    def __init__(self, url: str, asked: Asked, metrics: Sequence[str]) -> None:
        self.store = Store(url)
        manifest = self.store.manifest()
        if manifest is None or manifest.stage != "evaluate_retrieval":
            raise UserError(f"baseline {url}: no finished evaluate-retrieval here; run it first")
        rows = self.store.read_table(QUERIES).to_pylist()
        if {row["id"] for row in rows} != asked.queries.keys():
            raise UserError(f"baseline {url}: it measured other queries; evaluate both on the same split and sample")
        lacking = sorted(set(metrics) - set(manifest.config["metrics"]))
        if lacking:
            raise UserError(f"baseline {url}: it lacks the metrics {', '.join(lacking)}")
        self.digest = manifest.digest()
        self.values = {name: {row["id"]: row[name] for row in rows} for name in metrics}


def _finish(
    stage: StageRun, config: EvaluateRetrievalConfig, asked: Asked, rankings: dict[str, list[Hit]], *,
    baseline: _Baseline | None, seconds: float,
) -> None:  # fmt: skip
    values = per_query(asked.judgments, rankings, config.metrics, config.relevant)
    store = stage.store
    store.write_table(QUERIES, pa.Table.from_pylist([_row(query, asked, rankings, values) for query in asked.queries]))
    tag = f"raylm-{config.mode}" if not config.run else "raylm"
    store.write_bytes(RUN, write_run(rankings, tag).encode())
    figures: dict[str, Any] = {
        "metrics": {
            name: {"mean": float(np.mean(list(each.values()))),
                   "interval": list(bootstrap(list(each.values()), config.resamples, config.seed))}
            for name, each in values.items()
        },
        "queries": len(asked.queries),
        "unranked": sum(not rankings.get(query) for query in asked.queries),
        "left_out": asked.left_out,
    }  # fmt: skip
    if baseline is not None:
        figures["comparison"] = {
            name: compare(baseline.values[name], values[name], config.resamples, config.seed) for name in values
        }
    model = {} if not config.index else {key: str(describe(config.index)["encoder"][key]) for key in ("name", "hash")}
    said = (
        {"name": model["name"], "revision": model["hash"]} if model else {"name": "BM25" if not config.run else "run"}
    )
    timing = {"seconds": seconds, "queries_per_second": len(asked.queries) / max(seconds, 1e-9)}
    store.remove(PARTS)
    stage.finish(len(asked.queries), timing=timing, model=said, figures=figures)


def _row(
    query: str, asked: Asked, rankings: dict[str, list[Hit]], values: dict[str, dict[str, float]]
) -> dict[str, Any]:
    grades, hits = asked.judgments[query], rankings.get(query, [])
    places = [rank for rank, hit in enumerate(hits, start=1) if grades.get(hit.id, 0) > 0]
    return {
        "id": query,
        "query": asked.queries[query],
        "relevant": sum(grade > 0 for grade in grades.values()),
        "first_relevant": places[0] if places else None,
        "found": [hit.id for hit in hits[:10]],
        "missed": sorted(name for name, grade in grades.items() if grade > 0 and name not in {hit.id for hit in hits}),
        **{name: each[query] for name, each in values.items()},
    }


def _identity(config: EvaluateRetrievalConfig) -> dict[str, str]:
    """Digest of what ranks."""
    if config.run:
        return {"run": hashlib.sha256(_bytes(config.run, "run")).hexdigest()[:16]}
    if not config.index:
        return {}
    files = describe(config.index)["files"]
    content = "".join(f"{name}{files[name]['sha256']}" for name in sorted(files))
    return {"index": hashlib.sha256(content.encode()).hexdigest()[:16]}


def _bytes(path: str, field: str) -> bytes:
    store, file = Store.of_file(path)
    if not store.exists(file):
        raise UserError(f"{field}={path}: no such file")
    return store.read_bytes(file)
