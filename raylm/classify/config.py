"""Config of the classifier's training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raylm.config import Config, Direction, runtime
from raylm.softlabels.config import SoftLabelConfig


class StressConfig(Config):
    """What is done to the training texts, to see what a method stands: fewer of them, a long tail, wrong labels."""

    keep: float = Field(1.0, gt=0, le=1)
    """Share of each label's texts, at least one."""
    imbalance: float = Field(1.0, ge=1)
    """Texts of the label with most over those of the one with fewest; between them counts fall exponentially, in an
    order of the labels drawn by the seed."""
    noise: float = Field(0.0, ge=0, lt=1)
    """Share of the texts whose label becomes another one, all alike."""


class ClassifierConfig(Config):
    """Train a text classifier on an encoder, with hard or soft labels."""

    train: str = runtime()
    """JSONL or Parquet file of rows with `text` and `label`; `.gz` too."""
    dev: str = runtime("")
    """The same for choosing the epoch and the temperature; empty sets `dev_share` of the training texts aside."""
    test: str = runtime("")
    """The same for the evaluation; empty evaluates on dev."""
    dev_share: float = Field(0.1, gt=0, lt=1)
    """Of the training texts, label by label, where there is no dev file."""
    out: str = runtime("runs/classifier")
    """Directory of the artefact."""
    model: str = "all-minilm-l6-v2"
    """Encoder: a directory, all-minilm-l6-v2, or a hub model's id."""
    revision: str | None = None
    """Commit of a hub model."""
    pooling: Literal["mean", "cls"] = "mean"
    """How token vectors become one."""
    max_length: int = Field(128, ge=4)
    """Tokens of a text that are read. Longer texts are counted, and cut."""
    max_overlong_share: float = Field(0.05, ge=0, le=1)
    """Share of overlong texts above which the run is refused."""
    freeze: bool = False
    """Train the heads alone."""
    epochs: int = Field(5, ge=1)
    """Passes over the texts."""
    batch_size: int = Field(32, ge=1)
    """Texts an optimizer step, over all workers."""
    lr: float = Field(5e-5, gt=0)
    """Peak learning rate of the encoder."""
    head_lr: float = Field(1e-3, gt=0)
    """Peak learning rate of the heads."""
    warmup_share: float = Field(0.1, ge=0, le=1)
    """Share of the steps that warm up linearly; a linear decay to 0 follows."""
    weight_decay: float = Field(0.01, ge=0)
    """Of AdamW, not for biases and norms."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs the hard loss of a label inversely to its texts."""
    soft: SoftLabelConfig = SoftLabelConfig()
    """Soft labels."""
    stress: StressConfig = StressConfig()
    """Changes to the training texts."""
    keep_best: bool = True
    """Keep the weights of the epoch with the best macro-F1 on dev."""
    seed: int = 0
    """Of order, dropout, splits and stress."""
    workers: int = runtime(1, ge=1)
    """Ray Train workers (data parallel)."""
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
        """Numbers by which a sweep can compare runs, and which way is better; none is of the test texts."""
        best: dict[str, Direction] = {f"dev_{name}": "max" for name in ("accuracy", "macro_f1", "tail_recall")}
        return {"loss": "min", **best, "dev_ece": "min", "dev_nll": "min"}

    @model_validator(mode="after")
    def _divides(self) -> ClassifierConfig:
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of workers {self.workers}")
        if self.freeze and self.soft.mode == "two_head":
            raise ValueError(
                "freeze=true with soft.mode=two_head: heads on fixed vectors share nothing, so the second one would "
                "change nothing; train the encoder, or take soft.mode=single_head or kl"
            )
        return self
