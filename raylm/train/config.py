"""Configs of the finetune stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raylm.config import Config, runtime


class IsolationConfig(Config):
    """Evolving parameter isolation (EPI) as implemented here; its constants are ours, not the paper's."""

    enabled: bool = True
    """Off trains with the plain optimizer."""
    protect: float = Field(0.05, ge=0, le=1)
    """Share p of the parameters that is protected between two refreshes."""
    refresh_every: int = Field(10, ge=1)
    """Optimizer steps K between two refreshes of the mask."""
    warmup: int = Field(10, ge=0)
    """Optimizer steps W before the first mask."""
    beta: float = Field(0.99, ge=0, lt=1)
    """Decay of the moving average of squared gradients."""
    sample: int = Field(1_000_000, ge=1000)
    """Scores that estimate the threshold of the top p; all of them when there are fewer."""


class LoraConfig(Config):
    """Low-rank adapters instead of full fine-tuning (peft)."""

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(32, ge=1)
    """Scale of the adapters."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers that get an adapter."""


class FinetuneConfig(Config):
    """Fine-tune a model on chains."""

    chains: str = runtime("runs/synthesize")
    """Artefact of the synthesize stage, or a JSONL or Parquet file of rows with `messages`."""
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
    micro_batch: int = Field(4, ge=1)
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
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """Who shards and steps: DeepSpeed ZeRO, or plain PyTorch (one worker)."""
    zero: Literal[1, 2] = 2
    """ZeRO stage: what the workers share out besides the data. Isolation is not there for stage 3 yet."""
    isolation: IsolationConfig = IsolationConfig()
    """Which parameters stand still."""
    lora: LoraConfig | None = None
    """Adapters; None tunes every weight."""
    activation_checkpointing: bool = runtime(False)
    """Recompute activations in the backward pass, to save memory."""
    seed: int = 0
    """Seed of the order of chains and of dropout."""
    workers: int = Field(2, ge=1)
    """Ray Train workers (data parallel); part of the identity because sums over ranks round differently."""
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

    @model_validator(mode="after")
    def _batch_divides(self) -> FinetuneConfig:
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of workers {self.workers}")
        if self.engine == "torch" and self.workers > 1:
            raise ValueError("engine torch trains on one worker; set workers=1 or engine=deepspeed")
        return self
