"""Mining hard negatives: blocks of training queries on Ray actors, which map one corpus and one index."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from raylm.retrieval.bm25 import BM25
from raylm.retrieval.config import NegativeConfig, RetrieverConfig
from raylm.retrieval.corpus import Corpus, Queries
from raylm.retrieval.data import Collection
from raylm.retrieval.negatives import SCHEMA, Rule, Teacher, judge, judged, teacher_of
from raylm.retrieval.prepare import Data, documents, opened
from raylm.storage import Store
from raylm.units import Unit, read_unit, run_units, unit_key

BLOCK = 256
"""Queries of a unit of work."""


def negatives(
    config: NegativeConfig, asked: Queries, corpus: Corpus, bm25: BM25 | None, teacher: Teacher | None = None
) -> pa.Table:
    """What people judged not relevant and what BM25 finds for some queries, as rows of `negatives.SCHEMA`."""
    rule = Rule(config.depth, config.skip, config.keep, config.teacher_margin)
    tables = [SCHEMA.empty_table()]
    if not config.hard:
        return tables[0]
    if config.judged:
        named = judged(asked)
        tables.append(judge(asked, corpus, "judged", named, Rule(named[0].shape[1], 0, config.keep, rule.margin),
                            teacher=teacher))  # fmt: skip
    if config.bm25 and bm25 is not None:
        most = config.depth + max(map(len, asked.relevant), default=0)
        tables.append(judge(asked, corpus, "bm25", bm25.search(asked.texts, most), rule, teacher=teacher))
    return pa.concat_tables(tables)


def prepare(config: RetrieverConfig, collection: Collection, tokenizer: Any, folder: Path) -> Data:
    """Write the corpus and its BM25 index to a folder, where they are not yet, and read the data of the run."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "corpus.arrow"
    corpus = Corpus.open(file) if file.exists() else Corpus.write(documents(config, collection, tokenizer), file)
    index = folder / "bm25"
    if config.negatives.hard and config.negatives.bm25 and not index.exists():
        scratch = folder / ".bm25"
        shutil.rmtree(scratch, ignore_errors=True)
        texts = (text for block in corpus.blocks() for text in block)
        BM25.of(texts, segment=config.negatives.segment, stem=config.negatives.stem).save(scratch)
        scratch.rename(index)
    return opened(config, folder)


def mine(config: RetrieverConfig, data: Data, store: Store, folder: Path) -> pa.Table:
    """Hard negatives of all training queries, mined on Ray actors; finished blocks are not mined again.

    Raises:
        UserError: the teacher cannot be had.
    """
    wanted = config.negatives
    if not wanted.hard or not wanted.judged + wanted.bm25:
        return SCHEMA.empty_table()
    count = len(data.train)
    units = [
        Unit(unit_key("negatives", start), {"start": start, "stop": min(count, start + BLOCK)})
        for start in range(0, count, BLOCK)
    ]
    arguments = {"config": config.model_dump(mode="json"), "folder": str(folder)}
    report = run_units(units, Miner, arguments, store, config.mining, label="negatives", noun="blocks of queries")
    if report.failed:
        raise RuntimeError(f"mining negatives failed: {next(iter(report.failed.values()))}")
    return pa.concat_tables([read_unit(store, unit.key) for unit in units])


class Miner:
    """Mines blocks of queries; see `raylm.units.Worker`."""

    def __init__(self, config: dict[str, Any], folder: str) -> None:
        """Take plain data; `start` loads."""
        self.config, self.folder = RetrieverConfig.model_validate(config), Path(folder)

    async def start(self) -> None:
        """Map corpus and index, load the teacher."""
        self.data = opened(self.config, self.folder)
        index = self.folder / "bm25"
        self.bm25 = BM25.load(index) if index.exists() else None
        wanted = self.config.negatives
        self.teacher = teacher_of(wanted.teacher, self.config.max_length) if wanted.teacher else None

    async def run(self, unit: Unit, store: Store) -> tuple[pa.Table, dict[str, Any]]:
        """Mine one block."""
        asked = self.data.train.take(range(unit.payload["start"], unit.payload["stop"]))
        table = negatives(self.config.negatives, asked, self.data.corpus, self.bm25, self.teacher)
        return table, {"rows": table.num_rows}

    async def close(self) -> None:
        """Nothing is held beyond the process."""
