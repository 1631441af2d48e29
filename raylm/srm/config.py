"""Configs of the reward model: branches, fusion, training, scoring and diagnosis."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from raylm.config import Config, Direction, runtime
from raylm.llm.config import ComputeConfig


class BranchConfig(Config):
    """One dimension of the score."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """How it is called in scores and reports."""
    kind: Literal["head", "adapter", "tool", "text"] = "head"
    """head: linear on the backbone's features; adapter: a bottleneck before it; tool: a function of prompt and
    response; text: a language model writes a side text whose number counts."""
    column: str = ""
    """Head, adapter, text: rating that it learns, a key of `scores` in the rating rows. Empty: it learns the
    preferences themselves (head and adapter)."""
    low: float | None = None
    """Least rating; ratings below it are refused. Empty takes the least that occurs."""
    high: float | None = None
    """Greatest rating; ratings above it are refused. Empty takes the greatest that occurs."""
    rank: int = Field(32, ge=1)
    """Adapter: units of the bottleneck."""
    tool: str = ""
    """Tool: one of those built in, or `module:function` with a function of prompt and response that returns a number
    or None. Empty takes the one with the branch's name."""
    index: str = runtime("")
    """Tool `retrieval`: directory of the index that holds the evidence."""
    adapter: str = runtime("")
    """Text: directory of a LoRA adapter for the writer; empty writes with the plain model."""
    positive: bool | None = None
    """Whether more of it can only raise the score. Empty: yes for heads, adapters and texts, free for tools."""

    @model_validator(mode="after")
    def _fits(self) -> BranchConfig:
        if self.kind == "text" and not self.column:
            raise ValueError(f"branch {self.name}: a text branch needs column, the rating that its text states")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"branch {self.name}: low={self.low} is not below high={self.high}")
        return self

    @property
    def rises(self) -> bool:
        """Whether its weight is kept positive."""
        return self.kind != "tool" if self.positive is None else self.positive

    @property
    def trained(self) -> bool:
        """Whether it has weights of its own on the backbone."""
        return self.kind in ("head", "adapter")


DEFAULT_BRANCHES = (
    BranchConfig(name="relevance", kind="tool"),
    BranchConfig(name="coverage", kind="tool"),
    BranchConfig(name="support", kind="tool"),
    BranchConfig(name="style", kind="tool"),
    BranchConfig(name="quality", kind="head"),
)
"""Dimensions that need no ratings: four tools, and a head that learns the preferences."""


class FusionConfig(Config):
    """How branches become one score."""

    kind: Literal["additive", "text"] = "additive"
    """additive: a sum of branches, weighed by the prompt, of which every part is the branch's exact share; text: a
    scalar head reads prompt, branches' texts and response in a second pass."""
    gate: Literal["auto", "prompt", "constant"] = "auto"
    """Additive: whether weights depend on the prompt. auto lets them where that lowers the loss on held-out training
    prompts, which takes many prompts."""
    gate_rank: int = Field(8, ge=1)
    """Additive: directions of the prompt that weights depend on."""
    dropout: float = Field(0.15, ge=0, lt=1)
    """Chance that a branch is left out in training, so that scores without it are sound."""
    branch_tokens: int = Field(96, ge=4)
    """Text: tokens of a branch's text at most."""


class WriterConfig(Config):
    """The language model that writes the side texts of text branches."""

    model: str = "smollm2-135m-instruct"
    """A model directory, smollm2-135m-instruct, micro, or a hub id."""
    revision: str | None = None
    """Commit of a hub model."""
    prompt: str = (
        "Prompt: {prompt}\n\nResponse: {response}\n\nRate the {dimension} of the response{range}. "
        "Answer with the number, then give a reason in a few words."
    )
    """What it is asked; {prompt}, {response}, {dimension} and {range} are filled in."""
    max_tokens: int = Field(96, ge=1)
    """Tokens of a side text."""
    context: int = Field(1024, ge=64)
    """Tokens of question and side text; the middle of a longer prompt is left out, never the response."""
    batch_size: int = runtime(32, ge=1)
    """Side texts that are written at the same time, of all branches together."""


class LossConfig(Config):
    """What branches and fusion are trained by."""

    pairs: float = Field(1.0, ge=0)
    """Weight of the Bradley-Terry loss of the branches that learn preferences."""
    ratings: float = Field(1.0, ge=0)
    """Weight of the mean square error of every branch that learns ratings."""
    margin: float = Field(0.0, ge=0)
    """Scores of a pair should differ by its margin times this; 0 heeds no margins."""
    centring: float = Field(0.01, ge=0)
    """Weight of the squared sum of a pair's scores, which keeps scores around 0."""

    @model_validator(mode="after")
    def _learns(self) -> LossConfig:
        if self.pairs == 0 and self.ratings == 0:
            raise ValueError("loss.pairs and loss.ratings are both 0; nothing would be learned")
        return self


class RewardConfig(Config):
    """Train a structural reward model on preference pairs and dimension ratings."""

    measured_on_the_way: ClassVar[bool] = False
    """A sweep gets the measures at the end alone: the losses of different phases do not compare."""

    pairs: str = runtime("")
    """JSONL or Parquet file of `prompt` (text or messages), `chosen`, `rejected`, and optional `margin`; `.gz` too."""
    ratings: str = runtime("")
    """The same of `prompt`, `response` and `scores`, ratings by name."""
    dev_pairs: str = runtime("")
    """Pairs for choosing epochs and for calibration; with dev_ratings empty too, `dev_share` of the prompts is set
    aside."""
    dev_ratings: str = runtime("")
    """Ratings for choosing epochs."""
    test_pairs: str = runtime("")
    """Pairs for the evaluation; with test_ratings empty too, dev is evaluated."""
    test_ratings: str = runtime("")
    """Ratings for the evaluation."""
    pairs_from: str = ""
    """Also make pairs of the rated responses to one prompt: by this rating, or `mean` of all."""
    min_gap: float = Field(0.0, ge=0)
    """Least difference of the ratings of such a pair (of `mean`: in standard deviations)."""
    dev_share: float = Field(0.15, gt=0, lt=1)
    """Of the prompts, where there is no dev file."""
    out: str = runtime("runs/reward")
    """Directory of the artefact."""
    name: str = "srm"
    """What the model calls itself in scores."""
    model: str = "all-minilm-l6-v2"
    """Backbone: an encoder or causal language model; a directory, all-minilm-l6-v2, smollm2-135m-instruct, micro, or a
    hub model's id."""
    revision: str | None = None
    """Commit of a hub model."""
    max_length: int = Field(384, ge=32)
    """Tokens of prompt and response that are read together."""
    keep: Literal["start", "end", "both"] = "both"
    """What stays of a prompt that is too long."""
    max_cut_share: float = Field(0.05, ge=0, le=1)
    """Share of responses that may be too long to be read whole; more are refused. Cut prompts are counted."""
    branches: tuple[BranchConfig, ...] = DEFAULT_BRANCHES
    """Dimensions of the score."""
    fusion: FusionConfig = FusionConfig()
    """How they become one score."""
    writer: WriterConfig = WriterConfig()
    """Language model of the text branches."""
    loss: LossConfig = LossConfig()
    """What is minimised."""
    tune: bool = False
    """Train the backbone with the branches, once a fold and once on all prompts; else it is frozen and read once."""
    folds: int = Field(5, ge=2)
    """Parts of the prompts for cross-fitting: the fusion learns from branches that have not seen a prompt."""
    epochs: int = Field(20, ge=1)
    """Passes over pairs and ratings for the branches."""
    fusion_epochs: int = Field(20, ge=1)
    """Passes over the pairs for the fusion."""
    batch_size: int = Field(64, ge=1)
    """Pairs, and rated texts, of an optimizer step, over all workers."""
    lr: float = Field(2e-5, gt=0)
    """Peak learning rate of the backbone."""
    head_lr: float = Field(3e-4, gt=0)
    """Peak learning rate of the branches."""
    fusion_lr: float = Field(1e-2, gt=0)
    """Peak learning rate of the fusion."""
    weight_decay: float = Field(0.1, ge=0)
    """Of AdamW, not for biases and norms."""
    warmup_share: float = Field(0.1, ge=0, le=1)
    """Share of the steps that warm up linearly; a linear decay to 0 follows."""
    base: str = runtime("")
    """Targeted optimisation: directory of a trained reward model of which `retrain` is trained anew."""
    retrain: tuple[str, ...] = ()
    """Branches to train anew on the given data; everything else of the base stays bit-identical."""
    own_tools: bool = False
    """Import the functions that branches name as tools."""
    seed: int = 0
    """Of order, dropout, splits and folds."""
    workers: int = runtime(1, ge=1)
    """Ray Train workers (data parallel)."""
    cpus_per_worker: float = runtime(1.0, gt=0)
    """CPU cores of a worker; its threads are capped to it."""
    gpus_per_worker: float = runtime(0.0, ge=0)
    """GPUs of a worker."""
    checkpoint_every: int = runtime(200, ge=1)
    """Optimizer steps between checkpoints: the most that a crash repeats."""
    max_failures: int = runtime(3, ge=0)
    """Worker failures that Ray Train recovers from."""
    step_log: str = runtime("")
    """File to which every optimizer step taken is appended as a JSON line, repeated ones too; empty logs none."""

    def measures(self) -> dict[str, Direction]:
        """Numbers by which a sweep can compare runs, and which way is better; none is of the test pairs."""
        pairs: dict[str, Direction] = {"dev_pair_accuracy": "max", "dev_pair_nll": "min", "dev_ece": "min"}
        losses: dict[str, Direction] = {"loss": "min", "dev_loss": "min"}
        return {**losses, **(pairs if self.pairs or self.pairs_from else {})}

    @model_validator(mode="after")
    def _fits(self) -> RewardConfig:
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of workers {self.workers}")
        names = [branch.name for branch in self.branches]
        twice = {name for name in names if names.count(name) > 1}
        if not names or twice:
            raise ValueError(
                f"branches must be some, with names of their own (twice: {', '.join(sorted(twice)) or '-'})"
            )
        if bool(self.base) != bool(self.retrain):
            raise ValueError("base and retrain belong together: which model, and which of its branches")
        if self.retrain and not all(name in names for name in self.retrain):
            raise ValueError(f"retrain names {', '.join(self.retrain)}; branches are {', '.join(names)}")
        if self.retrain and self.tune:
            raise ValueError("retrain leaves the backbone as it is; set tune=false")
        return self


class ScoreConfig(Config):
    """Score responses with a trained reward model."""

    model: str = runtime("")
    """Directory of the reward model (the `model` folder of a train-reward run)."""
    texts: str = runtime("")
    """JSONL or Parquet file of `prompt` with `response` or `responses`; `.gz` too."""
    out: str = runtime("runs/scores")
    """Directory of the artefact."""
    on_truncated: Literal["flag", "refuse"] = "flag"
    """flag scores texts that are longer than the context and marks them; refuse makes them an error."""
    own_tools: bool = False
    """Import the functions that the model's branches name as tools."""
    compute: ComputeConfig = ComputeConfig(cpus=1.0, in_flight=2)
    """The actors that score."""


class DiagnoseConfig(Config):
    """Find out where a reward model errs, and which dimension is at fault."""

    model: str = runtime("")
    """Directory of the reward model (the `model` folder of a train-reward run)."""
    pairs: str = runtime("")
    """Preference pairs that it has not learned from, as for training."""
    ratings: str = runtime("")
    """Ratings, for the agreement of each branch; empty: none."""
    out: str = runtime("runs/reward-diagnosis")
    """Directory of the artefact."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Branch to the rating that it is compared with; a branch that learned a rating is compared with that one."""
    examples: int = Field(8, ge=1)
    """Bad cases that are shown for each dimension."""
    own_tools: bool = False
    """Import the functions that the model's branches name as tools."""
    compute: ComputeConfig = ComputeConfig(cpus=1.0, in_flight=2)
    """The actors that score."""
