"""Configs of indices, of the job that builds one, and of the evaluation of rankings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raylm.config import Config, runtime
from raylm.llm.config import ComputeConfig

Mode = Literal["dense", "bm25", "hybrid"]


class IndexSettings(Config):
    """How vectors and words are kept for search."""

    kind: Literal["auto", "flat", "ivf", "hnsw"] = "auto"
    """flat compares a query with everything and is exact; ivf looks into the nearest of many lists; hnsw walks a graph
    of neighbours. auto is flat up to 50,000 documents and hnsw above."""
    lists: int = Field(0, ge=0)
    """Lists of ivf; 0 takes four times the square root of the number of documents."""
    probes: int = Field(0, ge=0)
    """Lists that an ivf search looks into; 0 takes an eighth of them, at least eight."""
    links: int = Field(32, ge=4)
    """Neighbours of a node of hnsw."""
    build_width: int = Field(200, ge=8)
    """Candidates kept while hnsw is built (efConstruction)."""
    search_width: int = Field(128, ge=8)
    """Candidates kept while hnsw is searched (efSearch)."""
    language: Literal["auto", "english", "chinese", "none"] = "auto"
    """Of the words of BM25: english stems them, chinese segments with jieba, none takes them as they are; auto is
    chinese where most letters are Chinese and english elsewhere."""
    k1: float = Field(1.2, gt=0)
    """Saturation of a word's count in BM25."""
    b: float = Field(0.75, ge=0, le=1)
    """Weight of a document's length in BM25."""
    compact_at: float = runtime(0.1, gt=0, le=1)
    """Documents added or deleted since the last compaction, over all, at which everything is built again."""


class IndexConfig(Config):
    """Encode a collection and build its index."""

    data: str = runtime()
    """Folder in the BEIR layout (corpus.jsonl, queries.jsonl, qrels/)."""
    titles: bool = True
    """Whether a document's title is part of its text."""
    out: str = runtime("runs/index")
    """Directory of the artefact."""
    model: str = runtime("all-minilm-l6-v2")
    """Encoder: a directory, all-minilm-l6-v2, or a hub model's id. What counts is its content."""
    revision: str | None = None
    """Commit of a hub model."""
    max_length: int | None = Field(None, ge=4)
    """Tokens of a document that are read; empty takes what the encoder's directory says."""
    max_overlong_share: float = runtime(0.05, ge=0, le=1)
    """Share of documents with more tokens above which the run is refused, unless they are chunked."""
    chunk: bool = False
    """Cut longer documents into pieces that the encoder reads whole, each with the id DOCUMENT#n."""
    chunk_overlap: int = Field(32, ge=0)
    """Tokens that a piece repeats of the one before."""
    index: IndexSettings = IndexSettings()
    """The index."""
    shard: int = Field(512, ge=1)
    """Documents of a unit of work: the most that a killed worker repeats."""
    batch_size: int = runtime(64, ge=1)
    """Texts that the encoder reads at once."""
    recall_queries: int = Field(200, ge=1)
    """Queries of the collection on which the approximate search is compared with the exact one."""
    compute: ComputeConfig = ComputeConfig(cpus=1.0, in_flight=1)
    """Ray actors."""

    @model_validator(mode="after")
    def _fits(self) -> IndexConfig:
        if self.chunk and self.max_length is not None and self.chunk_overlap >= self.max_length - 2:
            raise ValueError(f"chunk_overlap={self.chunk_overlap} must be less than max_length={self.max_length} - 2")
        return self


class SearchConfig(Config):
    """Search an index from the terminal."""

    k: int = Field(10, ge=1)
    """Documents that are shown."""
    mode: Mode = "hybrid"
    """What ranks: vectors, BM25, or both by reciprocal rank fusion."""
    model: str = ""
    """Where the index' encoder is; empty looks where it was when the index was built."""
    letters: int = Field(200, ge=20)
    """Of a text that are shown."""


class EvaluateRetrievalConfig(Config):
    """Rank a collection's documents for the queries of a split, and measure the ranking."""

    data: str = runtime()
    """Folder in the BEIR layout."""
    titles: bool = True
    """Whether a document's title is part of its text; for BM25 without an index."""
    split: str = "test"
    """Judgments qrels/SPLIT.tsv."""
    index: str = runtime("")
    """Artefact of index; empty ranks with BM25 alone, over the collection."""
    run: str = runtime("")
    """A TREC run file to measure instead of a ranking of our own."""
    mode: Mode = "dense"
    """What ranks: vectors, BM25, or both by reciprocal rank fusion."""
    bm25: IndexSettings = IndexSettings()
    """Words and constants of BM25 without an index."""
    model: str = runtime("")
    """Encoder of the queries; empty takes the one that the index names. It must have the index' hash."""
    depth: int = Field(100, ge=1)
    """Documents that are ranked for a query."""
    metrics: tuple[str, ...] = ("nDCG@10", "RR@10", "R@100", "AP")
    """Names as ir-measures writes them."""
    relevant: int = Field(1, ge=1)
    """Lowest grade that counts as relevant where a metric knows two grades alone."""
    allow_missing: bool = False
    """Leave out judgments that name missing documents or queries."""
    max_queries: int = Field(0, ge=0)
    """Measure a sample of the split's queries; 0 takes all."""
    baseline: str = runtime("")
    """Artefact of another evaluate-retrieval on the same queries, to compare with query by query."""
    resamples: int = Field(10_000, ge=100)
    """Of the bootstrap and of the randomisation test."""
    out: str = runtime("runs/evaluate-retrieval")
    """Directory of the artefact."""
    seed: int = 0
    """Of samples and tests."""

    @model_validator(mode="after")
    def _fits(self) -> EvaluateRetrievalConfig:
        if self.run and self.index:
            raise ValueError("run and index are two rankings; give one of them")
        if not self.index and not self.run and self.mode != "bm25":
            raise ValueError(f"mode={self.mode} needs index=ARTEFACT; mode=bm25 does without")
        return self
