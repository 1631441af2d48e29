"""Config of a retriever's training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raylm.config import Config, Direction, runtime
from raylm.llm.config import ComputeConfig
from raylm.softlabels.enhancement_config import EnhancementConfig

Loss = Literal["quadruplet", "quadruplet_b", "triplet", "triplet_hard", "triplet_own", "infonce", "infonce_hard",
               "margin_mse"]  # fmt: skip
NEEDS_HARD = ("quadruplet", "quadruplet_b", "triplet_hard", "triplet_own", "infonce_hard", "margin_mse")


class MarginConfig(Config):
    """Margins of distances (1 - cosine) for the triplet and quadruplet losses."""

    hard: float = Field(0.1, gt=0)
    """m1: a relevant document from a hard negative."""
    simple: float = Field(0.3, gt=0)
    """m2: a relevant document from a simple negative; at least hard + between."""
    between: float = Field(0.1, gt=0)
    """m3: a hard negative from a simple one."""
    weight: float = Field(0.5, ge=0)
    """lambda, of the third term; 0 leaves it out."""

    @model_validator(mode="after")
    def _ordered(self) -> MarginConfig:
        if self.simple <= self.hard or self.simple < self.hard + self.between - 1e-9:
            raise ValueError(f"simple={self.simple} must be more than hard={self.hard}, and at least hard + between")
        return self


class NegativeConfig(Config):
    """Where hard negatives come from."""

    hard: int = Field(1, ge=0)
    """Hard negatives of a query in a batch; 0 trains with the other queries' documents alone."""
    judged: float = Field(0.0, ge=0)
    """Weight in a draw of documents that were judged and are not relevant."""
    bm25: float = Field(1.0, ge=0)
    """Weight of documents that BM25 finds."""
    ann: float = Field(0.0, ge=0)
    """Weight of documents that the encoder itself finds while it trains (ANCE)."""
    refresh_every: int = Field(0, ge=0)
    """Steps after which the encoder's own negatives are found anew; 0 does it once an epoch."""
    warmup_share: float = Field(0.0, ge=0, lt=1)
    """Share of the steps at the start that leave hard negatives out of the loss."""
    depth: int = Field(50, ge=1)
    """Ranks that are looked at."""
    skip: int = Field(0, ge=0)
    """Highest ranks that are left out."""
    keep: int = Field(20, ge=1)
    """Negatives kept for a query and source."""
    teacher: str = ""
    """Model that drops negatives which it holds relevant, and whose scores margin_mse learns: an encoder, or a
    directory of a cross-encoder (a sequence classifier with one output). Empty drops none."""
    teacher_margin: float = 0.0
    """What the teacher's score of a negative must be below the relevant document's by."""
    segment: Literal["auto", "words", "spaces", "chinese"] = "auto"
    """How texts fall into words for BM25."""
    stem: Literal["", "english"] = ""
    """Stemmer for BM25."""

    @model_validator(mode="after")
    def _has_source(self) -> NegativeConfig:
        if self.hard and not self.judged + self.bm25 + self.ann:
            raise ValueError("hard negatives need a source: give judged, bm25 or ann a weight, or hard=0")
        return self


class RetrieverConfig(Config):
    """Train a dense retriever on a collection in the BEIR layout."""

    data: str = runtime()
    """Folder with corpus.jsonl, queries.jsonl (.gz too) and qrels/*.tsv."""
    train: str = "train"
    """Judgments to train on."""
    dev: str = "dev"
    """Judgments to choose the epoch by; empty sets `dev_share` of the training queries aside."""
    test: str = ""
    """Judgments of the evaluation before and after; empty evaluates on dev."""
    dev_share: float = Field(0.1, gt=0, lt=1)
    """Of the training queries, where there are no dev judgments."""
    relevant_from: int = Field(1, ge=1)
    """Grade from which a document is relevant."""
    allow_missing: bool = False
    """Leave out judgments of documents and queries that are not there, instead of refusing them."""
    max_queries: int = Field(0, ge=0)
    """Training queries, drawn by the seed; 0 takes all."""
    titles: bool = True
    """Whether a document's title is part of its text."""
    out: str = runtime("runs/retriever")
    """Directory of the artefact."""
    model: str = "all-minilm-l6-v2"
    """Encoder: a directory, all-minilm-l6-v2, or a hub model's id."""
    revision: str | None = None
    """Commit of a hub model."""
    pooling: Literal["mean", "cls"] | None = None
    """How token vectors become one; None takes what the model's directory says, or mean."""
    query_prefix: str | None = None
    """Text before every query; None takes what the model's directory says."""
    document_prefix: str | None = None
    """Text before every document; None takes what the model's directory says."""
    dimension: int | None = Field(None, ge=1)
    """Matryoshka: coordinates that are kept; None keeps all."""
    max_length: int = Field(128, ge=4)
    """Tokens of a text that are read."""
    long_documents: Literal["cut", "chunk"] = "cut"
    """What happens to documents with more tokens: cut and counted, or found by their chunks."""
    chunk_overlap: int = Field(16, ge=0)
    """Tokens that a chunk repeats of the one before."""
    freeze_layers: int = Field(0, ge=0)
    """Lowest layers that stay as they are, embeddings among them; their output is kept in memory and not made again."""
    adapter: bool = False
    """Train a linear map of the frozen encoder's pooled vectors instead of its layers: seconds on a CPU."""
    cache_gib: float = runtime(2.0, ge=0)
    """Memory of a worker for the output of frozen layers."""
    loss: Loss = "infonce_hard"
    """infonce: cross-entropy over the batch's documents; infonce_hard: hard negatives among them. triplet: margin to
    simple negatives; triplet_own: to hard ones; triplet_hard: to both. quadruplet, quadruplet_b: also between them.
    margin_mse: the teacher's differences of scores."""
    margins: MarginConfig = MarginConfig()
    """Of the triplet and quadruplet losses."""
    temperature: float = Field(0.05, gt=0)
    """Of the softmax over cosines."""
    negatives: NegativeConfig = NegativeConfig()
    """Hard negatives."""
    soft: EnhancementConfig = EnhancementConfig()
    """Soft targets over a batch's documents."""
    epochs: int = Field(3, ge=1)
    """Passes over the training pairs."""
    batch_size: int = Field(32, ge=2)
    """Queries an optimizer step, over all workers."""
    piece: int = runtime(0, ge=0)
    """Queries that a worker encodes at once. Fewer than its share of the batch turns gradient caching on, which needs
    the memory of a piece alone and a second forward pass; 0 encodes all at once."""
    lr: float = Field(2e-5, gt=0)
    """Peak learning rate."""
    warmup_share: float = Field(0.1, ge=0, le=1)
    """Share of the steps that warm up linearly; a linear decay to 0 follows."""
    weight_decay: float = Field(0.01, ge=0)
    """Of AdamW, not for biases and norms."""
    clip: float = Field(1.0, ge=0)
    """Largest norm of the gradient; 0 clips nothing."""
    keep_best: bool = True
    """Keep the weights of the epoch with the best nDCG@10 on dev, the untouched encoder's among them."""
    stop_on_collapse: bool = True
    """End the run with an error when all texts get one vector; otherwise the report says so."""
    seed: int = 0
    """Of order, negatives, dropout and splits."""
    mining: ComputeConfig = ComputeConfig(cpus=1, in_flight=1)
    """Ray actors that mine negatives."""
    workers: int = runtime(1, ge=1)
    """Ray Train workers (data parallel); every query sees the documents of all of them."""
    cpus_per_worker: float = runtime(1.0, gt=0)
    """CPU cores of a worker; its threads are capped to it."""
    gpus_per_worker: float = runtime(0.0, ge=0)
    """GPUs of a worker."""
    checkpoint_every: int = runtime(50, ge=1)
    """Optimizer steps between checkpoints: the most that a crash repeats."""
    max_failures: int = runtime(3, ge=0)
    """Worker failures that Ray Train recovers from."""
    step_log: str = runtime("")
    """File to which every optimizer step taken is appended as a JSON line, repeated ones too; empty logs none."""

    def measures(self) -> dict[str, Direction]:
        """Numbers by which a sweep can compare runs, and which way is better; none is of the test queries."""
        dev: dict[str, Direction] = {f"dev_{name}": "max" for name in ("nDCG@10", "RR@10", "R@10", "R@100")}
        return {"loss": "min", **dev}

    @model_validator(mode="after")
    def _fits(self) -> RetrieverConfig:
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of workers {self.workers}")
        if self.loss in NEEDS_HARD and not self.negatives.hard:
            raise ValueError(f"loss={self.loss} needs negatives.hard of at least 1")
        if self.loss == "margin_mse" and not self.negatives.teacher:
            raise ValueError("loss=margin_mse needs negatives.teacher, whose scores it learns")
        if self.soft.kind == "teacher" and not self.negatives.teacher:
            raise ValueError("soft.kind=teacher needs negatives.teacher")
        return self
