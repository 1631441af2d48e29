"""Configs of the finetune stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raylm.config import Config, Direction, runtime


class IsolationConfig(Config):
    """Evolving parameter isolation (EPI) as implemented here; its constants are ours, not the paper's.

    Numbers of steps may be given as a share of all steps, below 1.
    """

    enabled: bool = True
    """Off trains with the plain optimizer."""
    protect: float = Field(0.05, ge=0, le=1)
    """Share p of the parameters that is protected between two refreshes."""
    protect_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the share comes to `protect` from `protect_start`."""
    protect_start: float = Field(0.0, ge=0, le=1)
    """Share at the first mask, where the schedule is not constant."""
    protect_ramp: float = Field(1.0, gt=0)
    """Steps that the schedule takes from the first mask on; 1 is all that follow."""
    refresh_every: float = Field(0.05, gt=0)
    """Optimizer steps K between two refreshes of the mask."""
    refresh_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the interval comes from `refresh_every` to `refresh_end` until the last step."""
    refresh_end: float = Field(0.05, gt=0)
    """Interval at the last step, where the schedule is not constant."""
    warmup: float = Field(0.05, ge=0)
    """Optimizer steps W before the first mask, at least one."""
    beta: float = Field(0.99, ge=0, lt=1)
    """Decay of the moving average of the scores."""
    score: Literal["g2", "theta_g", "adam", "moved"] = "g2"
    """Importance: moving averages of g^2 or of |theta g|, |m| / sqrt(v) of AdamW, or the distance from the start."""
    normalise: Literal["mean", "max", "rank", "none"] = "mean"
    """Within each tensor: by its mean or largest score, by rank (every tensor gives its own top p), or not at all."""
    scope: Literal["pooled", "per_task"] = "pooled"
    """One importance for all samples, or one a task; what is important for any task is protected then."""
    choose: Literal["top", "bottom", "random"] = "top"
    """Which share is protected; bottom and random are controls."""
    source: Literal["evolving", "static", "file"] = "evolving"
    """Masks made anew at every refresh, the first one kept, or the one of `mask_file` from the first step on."""
    mask_file: str = runtime("")
    """Mask that another run has written (isolation/mask.safetensors in its artefact)."""
    mask: Literal["hard", "soft"] = "hard"
    """Hard masks hold values bit for bit; soft ones shorten a step by alpha sigmoid((score - threshold) / T)."""
    alpha: float = Field(1.0, ge=0, le=1)
    """Of a soft mask: what the most important parameters lose of their steps."""
    temperature: float = Field(1.0, gt=0)
    """T of a soft mask, in units of the normalised score."""
    granularity: Literal["element", "row", "tensor"] = "element"
    """What is protected as a whole, by the mean of its normalised scores."""
    hysteresis: int = Field(1, ge=1)
    """Refreshes in a row at which a parameter must be below the threshold to be released."""
    on_release: Literal["keep", "reset", "decay"] = "keep"
    """First moment of a parameter that is released. The second stays: from 0 the next step would be far too long."""
    release_decay: float = Field(0.1, ge=0, le=1)
    """What `decay` leaves of the first moment."""
    release_ramp: int = Field(0, ge=0)
    """Steps over which a released parameter comes back to whole steps, at most until the next refresh."""
    include: tuple[str, ...] = ()
    """Patterns (*, ?) of the names of tensors that may be protected; none means all."""
    exclude: tuple[str, ...] = ()
    """Patterns of the names of tensors that are never protected. They count in no share."""
    sample: int = Field(0, ge=0)
    """Scores, evenly spaced, that estimate the threshold; 0 finds it exactly."""
    measure_noise: bool = False
    """Also keep the importance of every second step, and log how far masks from disjoint batches overlap."""
    seed: int = 0
    """Of random masks."""

    @model_validator(mode="after")
    def _fits(self) -> IsolationConfig:
        for name in ("refresh_every", "refresh_end", "warmup"):
            value = getattr(self, name)
            if value >= 1 and value != int(value):
                raise ValueError(f"{name}={value} is neither a number of steps nor a share below 1")
        if (self.source == "file") != bool(self.mask_file):
            raise ValueError("source=file and mask_file go together: give both or neither")
        average = self.score in ("g2", "theta_g")
        if self.scope == "per_task" and not (average and self.choose == "top"):
            raise ValueError("scope=per_task needs a score by task: score=g2 or theta_g with choose=top")
        if self.measure_noise and not (average and self.choose == "top" and self.scope == "pooled"):
            raise ValueError("measure_noise needs score=g2 or theta_g with choose=top and scope=pooled")
        if self.mask == "soft" and (self.normalise == "rank" or self.choose != "top" or self.granularity != "element"):
            raise ValueError("mask=soft needs choose=top, granularity=element and normalise=mean, max or none")
        if self.mask == "soft" and (self.scope == "per_task" or self.source == "file"):
            raise ValueError("mask=soft needs scope=pooled and scores of its own")
        return self


class LoraConfig(Config):
    """Low-rank adapters instead of full fine-tuning (peft)."""

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(32, ge=1)
    """Scale of the adapters."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers that get an adapter."""


class TaskConfig(Config):
    """Chains of one of several tasks."""

    name: str = Field(min_length=1)
    """Of the task, in logs and masks."""
    chains: str = runtime()
    """As `chains` of the whole stage."""
    weight: float = Field(1.0, gt=0)
    """How often a pass over all tasks holds each of its chains; the part behind the point by a draw in each pass."""
    epochs: float = Field(0.0, ge=0)
    """Passes where tasks follow each other; 0 takes that of the stage."""
    eval_chains: str = runtime("")
    """Held-out chains of the task, whose loss is watched in training."""


class WatchConfig(Config):
    """Held-out chains whose loss is watched in training."""

    chains: str = runtime("")
    """As `chains` of the stage; empty watches none, besides the `eval_chains` of tasks."""
    every: float = Field(0.1, gt=0)
    """Optimizer steps between two looks, or a share of all steps, below 1. The ends of tasks and of the run are always
    looked at."""
    keep_best: bool = False
    """Export the weights with the lowest loss instead of the last ones."""
    patience: int = Field(0, ge=0)
    """Looks without a new lowest loss after which training ends; 0 never ends it."""


class PenaltyConfig(Config):
    """A pull towards earlier weights: what isolation is compared with."""

    kind: Literal["l2_init", "ewc"] = "l2_init"
    """Towards the weights of the start, all alike; or, from the second task of a sequence on, towards those at the end
    of each task before, in proportion to their squared gradients in it (elastic weight consolidation)."""
    weight: float = Field(0.01, gt=0)
    """Factor of half the sum of squares."""


class FinetuneConfig(Config):
    """Fine-tune a model on chains."""

    chains: str = runtime("runs/synthesize")
    """Artefact of the synthesize stage, or a JSONL or Parquet file of rows with `messages`."""
    tasks: tuple[TaskConfig, ...] = ()
    """Several sets of chains instead of `chains`."""
    plan: str = runtime("")
    """Repair plan of the diagnose stage (plan.json): samples to drop, keep apart, weight or replay, documents to train
    on first, further passes."""
    order: Literal["mixed", "by_task", "sequential"] = "mixed"
    """Batches of all tasks, batches of one task each in turn, or all of one task and then the next, each with a
    learning rate schedule of its own."""
    out: str = runtime("runs/finetune")
    """Directory of the artefact."""
    model: str = "smollm2-135m-instruct"
    """Model to start from; see the engine's `model`."""
    revision: str | None = None
    """Commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    epochs: float = Field(3.0, gt=0)
    """Passes over the chains."""
    max_steps: int = Field(0, ge=0)
    """Optimizer steps at most; 0 lets epochs decide."""
    batch_size: int = Field(16, ge=1)
    """Chains an optimizer step, over all workers and micro-steps."""
    micro_batch: int = runtime(4, ge=1)
    """Chains in one forward pass of one worker."""
    max_length: int = Field(1024, ge=8)
    """Longest chain with its prompt, in tokens. Longer ones are counted and left out, never cut."""
    max_overlong_share: float = Field(0.01, ge=0, le=1)
    """Share of overlong chains above which the run is refused."""
    lr: float = Field(2e-5, gt=0)
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    warmup_share: float = Field(0.03, ge=0, le=1)
    """Share of the steps that warm up linearly."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW."""
    clip: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 does not clip."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of forward and backward; optimizer states are float32."""
    engine: Literal["deepspeed", "torch"] = runtime("deepspeed")
    """Who shards and steps: DeepSpeed ZeRO, or plain PyTorch (one worker). An interrupted run goes on with either."""
    zero: Literal[1, 2, 3] = runtime(2)
    """ZeRO stage: what the workers share out besides the data: optimizer states, gradients, weights."""
    isolation: IsolationConfig = IsolationConfig()
    """Which parameters stand still."""
    penalty: PenaltyConfig | None = None
    """A pull towards earlier weights; None for none."""
    lora: LoraConfig | None = None
    """Adapters; None tunes every weight."""
    packing: bool = False
    """Lay the chains of a micro-batch end to end instead of padding them; attention still sees one chain only."""
    watch: WatchConfig = WatchConfig()
    """Held-out loss, best weights, early stop."""
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = runtime(())
    """Where the curves go besides the report; tensorboard writes below `out`."""
    activation_checkpointing: bool = runtime(False)
    """Recompute activations in the backward pass, to save memory."""
    seed: int = 0
    """Seed of the order of chains and of dropout."""
    workers: int = runtime(2, ge=1)
    """Ray Train workers (data parallel). An interrupted run goes on with any number: only sums round differently."""
    cpus_per_worker: float = runtime(1.0, gt=0)
    """CPU cores of a worker; its threads are capped to it."""
    gpus_per_worker: float = runtime(0.0, ge=0)
    """GPUs of a worker."""
    checkpoint_every: int = runtime(10, ge=1)
    """Optimizer steps between checkpoints: the most that a crash repeats."""
    step_log: str = runtime("")
    """File to which every optimizer step taken is appended as a JSON line, repeated ones too; empty logs none."""
    max_failures: int = runtime(3, ge=0)
    """Worker failures that Ray Train recovers from."""

    def measures(self) -> dict[str, Direction]:
        """Numbers by which a sweep can compare runs of this config, and which way is better."""
        found: dict[str, Direction] = {"loss": "min"}
        if self.watch.chains or any(task.eval_chains for task in self.tasks):
            found |= {"held_out_loss": "min", "held_out_exact": "max", "forgetting": "min"}
        if any(task.eval_chains for task in self.tasks):
            found["new_task"] = "max"
        return found

    @model_validator(mode="after")
    def _batch_divides(self) -> FinetuneConfig:
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of workers {self.workers}")
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks: {max(names, key=names.count)!r} is there more than once; names must differ")
        if self.isolation.enabled and self.isolation.scope == "per_task" and (not names or self.order == "mixed"):
            raise ValueError("isolation.scope=per_task needs tasks, and order=by_task or order=sequential")
        if self.engine == "torch" and self.workers > 1:
            raise ValueError("engine torch trains on one worker; set workers=1 or engine=deepspeed")
        return self
