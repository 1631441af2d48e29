"""How fast are search, encoding and training, beside what they are built on and their neighbours?

    python -m jobs.bench.retrieval [--vectors N] [--texts N] [--repeats N] [--threads N] [--pairs N]
        [--keywords] [--no-train]

search_vs_faiss: queries/s through our index (checks, ids, ties and all) over those of the faiss index inside it, k 10,
by kind of index and batch size; the headline is the least of them. encode_vs_sentence_transformers: texts/s of one
all-MiniLM over that of sentence-transformers, passages and questions of medquad where $RAYLM_DATA is set, else drawn
words. keyword_vs_loop: of jobs.bench.softlabels, or measured
again with --keywords. train_vs_sentence_transformers: as
jobs.bench.retrieval_train does. The two sides of a ratio take turns in one process, on one thread; searches and
encodings are timed in CPU seconds, so that what else runs on the machine counts for neither.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs import results
from jobs.bench import softlabels
from raylm.retrieval.index import Index, Source
from raylm.retrieval.index_config import IndexSettings

KINDS, BATCHES, K = ("flat", "ivf", "hnsw"), (1, 64), 10


def main(options: argparse.Namespace) -> None:
    """Measure, and write bench/results/retrieval.json."""
    import faiss
    import torch

    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    rows = [*search(options), *encode(options), *keywords(options)]
    if options.train:
        rows += train(options)
    ratios: dict[str, list[float]] = {}
    for row in rows:
        ratios.setdefault(row["what"], []).append(row["ratio"])
    figures, intervals = results.geometric_means(ratios)
    least = min((name for name in figures if name.startswith("search_vs_faiss")), key=lambda name: figures[name])
    figures["search_vs_faiss"], intervals["search_vs_faiss"] = figures[least], intervals[least]
    sizes: dict[str, Any] = {"vectors": options.vectors, "dimension": 384, "texts": options.texts}
    print(results.write("bench/results/retrieval", figures | sizes, rows, intervals=intervals, seeds=[0]))


def search(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Our index and the faiss index inside it, with the same queries."""
    vectors, queries = drawn(options.vectors, 0), drawn(512, 1)
    ids, texts = [f"document-{n}" for n in range(len(vectors))], ["word"] * len(vectors)
    rows = []
    for kind in KINDS:
        settings = IndexSettings(kind=kind)  # type: ignore[arg-type]
        index = Index.build(ids, texts, vectors, source=Source("drawn", "0"), settings=settings)
        bare = index.base.ann.index
        for batch in BATCHES:
            parts = [queries[start : start + batch] for start in range(0, len(queries), batch)]
            sides = {
                "ours": lambda part, index=index: index.search(part, K),
                "theirs": lambda part, bare=bare: bare.search(part, K),
            }
            for repeat, seconds in enumerate(_alternating(sides, parts, options.repeats)):
                rates = {side: len(queries) / value for side, value in seconds.items()}
                what = f"search_vs_faiss_{kind}_batch_{batch}"
                rows.append({"what": what, "repeat": repeat, "ratio": rates["ours"] / rates["theirs"], **rates,
                             "recall_at_10": index.facts["recall_at_10"]})  # fmt: skip
    return rows


def encode(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The same weights, texts and batch size; vectors are compared."""
    from sentence_transformers import SentenceTransformer

    from raylm.llm import models
    from raylm.retrieval.encoder import Encoder

    texts = passages(options.texts)
    ours = Encoder.load("all-minilm-l6-v2")
    theirs = SentenceTransformer(str(models.resolve_encoder("all-minilm-l6-v2").path), device="cpu")
    theirs.max_seq_length = ours.max_length
    sides: dict[str, Callable[[Any], Any]] = {
        "ours": lambda part: ours.encode(part, batch_size=64),
        "theirs": lambda part: theirs.encode(part, batch_size=64, normalize_embeddings=True, show_progress_bar=False),
    }
    np.testing.assert_allclose(sides["ours"](texts[:64]), sides["theirs"](texts[:64]), atol=1e-5)
    rows = []
    for repeat, seconds in enumerate(_alternating(sides, [texts], options.repeats)):
        rates = {side: len(texts) / value for side, value in seconds.items()}
        row = {"what": "encode_vs_sentence_transformers", "repeat": repeat, **rates}
        rows.append({**row, "ratio": rates["ours"] / rates["theirs"]})
    return rows


def keywords(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Keyword scores and the plain double loop: the rows of `python -m jobs.bench.softlabels`, where it has run."""
    file = results.HERE / "bench/results/softlabels.jsonl"
    if options.keywords or not file.exists():
        rows = softlabels.measure(100_000, 100, 50_000, asked=100, repeats=min(3, options.repeats))
    else:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{"what": "keyword_vs_loop", "ratio": row["loop"] / row["score"], **row} for row in rows]


def train(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Training pairs/s over those of sentence-transformers' trainer."""
    from jobs.bench.retrieval_train import train_ratio

    ratios, rows = train_ratio(options.repeats, options.pairs)
    each = ratios["train_vs_sentence_transformers"]
    what = "train_vs_sentence_transformers"
    return [{"what": what, "ratio": ratio, **row} for ratio, row in zip(each, rows, strict=True)]


def drawn(count: int, seed: int) -> np.ndarray:
    """Unit vectors around two hundred centres, [count, 384] float32."""
    centres = np.random.default_rng(0).normal(size=(200, 384))
    draws = np.random.default_rng([seed, 1])
    found = centres[draws.integers(0, 200, count)] + 0.7 * draws.normal(size=(count, 384))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def passages(count: int) -> list[str]:
    """Half passages, half questions."""
    folder = Path(os.environ.get("RAYLM_DATA", ""), "medquad")
    if not (folder / "corpus.jsonl.gz").is_file():
        draws = np.random.default_rng(0)
        return [" ".join(f"word{n}" for n in draws.integers(0, 999, draws.integers(5, 150))) for _ in range(count)]
    found: list[str] = []
    for name in ("corpus", "queries"):
        with gzip.open(folder / f"{name}.jsonl.gz", "rt") as source:
            found += [json.loads(line)["text"] for line, _ in zip(source, range(count // 2), strict=False)]
    return found


def _alternating(sides: dict[str, Callable[[Any], Any]], parts: Sequence[Any], repeats: int) -> list[dict[str, float]]:
    """CPU seconds of each side for all parts, a row a repeat: they take turns part by part, and who begins changes.

    Where parts are many a side's seconds are their median times their number, so that a pause of the machine in one
    of them does not decide.
    """
    for function in sides.values():
        function(parts[0])
    rows = []
    for repeat in range(repeats):
        taken: dict[str, list[float]] = {side: [] for side in sides}
        for number, part in enumerate(parts):
            order = list(sides) if (repeat + number) % 2 else list(sides)[::-1]
            for side in order:
                start = time.process_time()
                sides[side](part)
                taken[side].append(time.process_time() - start)
        rows.append({side: statistics.median(each) * len(each) for side, each in taken.items()})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--pairs", type=int, default=64, help="queries of a training run")
    parser.add_argument("--keywords", action="store_true", help="measure keyword scores again")
    main(parser.parse_args())
