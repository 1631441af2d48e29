"""One training step on any engine: the loss over labelled positions only, the schedule, the engines' differences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from raylm.llm.chat import IGNORE
from raylm.train.config import FinetuneConfig
from raylm.train.isolation import IsolatedAdamW, Isolation, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = dict[str, torch.Tensor]


def label_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Sum of the cross entropies of the labelled tokens, in nats.

    Logits are made for labelled positions alone: with a vocabulary of 49k that spares a fifth of a small model's work.
    """
    backbone = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = backbone.model(input_ids=batch["ids"], attention_mask=batch["mask"], use_cache=False).last_hidden_state
    targets = batch["labels"][:, 1:]
    wanted = targets != IGNORE
    logits = backbone.lm_head(hidden[:, :-1][wanted])
    return F.cross_entropy(logits.float(), targets[wanted], reduction="sum")


def learning_rate(config: FinetuneConfig, step: int, steps: int) -> float:
    """Rate of step `step`, counted from 0: linear warm-up, then the schedule down to 0 (constant stays)."""
    warm = round(config.warmup_share * steps)
    if step < warm:
        return config.lr * (step + 1) / (warm + 1)
    done = (step - warm) / max(1, steps - warm)
    return (
        config.lr
        * {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]
    )


def make_optimizer(model: PreTrainedModel, config: FinetuneConfig) -> IsolatedAdamW:
    """The optimizer over the trainable parameters."""
    return IsolatedAdamW(
        [param for param in model.parameters() if param.requires_grad],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=1e-8,
        weight_decay=config.weight_decay,
        clip=config.clip,
    )


class TorchEngine:
    """Plain PyTorch on one worker."""

    def __init__(self, model: PreTrainedModel, config: FinetuneConfig) -> None:
        self.model, self.optimizer = model, make_optimizer(model, config)
        parts = [
            (param, [Segment(name, 0, param.numel())])
            for name, param in model.named_parameters()
            if param.requires_grad
        ]
        if config.isolation.enabled:
            self.optimizer.isolation = Isolation(config.isolation, parts)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch."""
        loss.backward()

    def step(self) -> None:
        """Take the optimizer's step and clear gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def flat_parameters(self) -> list[torch.Tensor]:
        """What this rank's optimizer steps on."""
        return [param for group in self.optimizer.param_groups for param in group["params"]]


class DeepSpeedEngine:
    """DeepSpeed ZeRO 1 or 2: gradients are summed and partitioned by it, the step on a partition is ours."""

    def __init__(self, model: PreTrainedModel, config: FinetuneConfig, world: int) -> None:
        import deepspeed
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        # Its shared-memory all-reduce would be compiled for a minute at first use; gloo does the same sums.
        deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
        micro = math.ceil(config.batch_size / world / config.micro_batch)
        settings = {
            "train_micro_batch_size_per_gpu": config.micro_batch,
            "gradient_accumulation_steps": micro,
            "gradient_clipping": 0.0,  # it clips to 1 unless told not to; ours comes after importance was measured
            "zero_optimization": {"stage": config.zero},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": config.precision == "bfloat16"},
            "steps_per_print": 2**31,
        }
        names = {id(param): name for name, param in model.named_parameters()}
        self.optimizer = make_optimizer(model, config)
        self.engine, wrapped, *_ = deepspeed.initialize(model=model, optimizer=self.optimizer, config=settings)
        self.model = self.engine.module
        self.optimizer.partitioned = world > 1
        if config.isolation.enabled:
            parts = [
                (flat, _segments(wrapped, group, flat.numel(), names))
                for group, flat in enumerate(wrapped.single_partition_of_fp32_groups)
            ]
            self.optimizer.isolation = Isolation(config.isolation, parts)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch; the loss carries its whole weight already."""
        self.engine.backward(loss, scale_wrt_gas=False)
        self.engine.step()

    def step(self) -> None:
        """Nothing left: the engine has stepped with the last micro-batch."""

    def flat_parameters(self) -> list[torch.Tensor]:
        """This rank's partitions."""
        return list(self.engine.optimizer.single_partition_of_fp32_groups)


def make_engine(model: PreTrainedModel, config: FinetuneConfig, world: int) -> TorchEngine | DeepSpeedEngine:
    """The engine that `config.engine` names, for one of `world` workers."""
    return DeepSpeedEngine(model, config, world) if config.engine == "deepspeed" else TorchEngine(model, config)


def _segments(wrapped: Any, group: int, size: int, names: dict[int, str]) -> list[Segment]:
    """Where the tensors of a parameter group lie in this rank's partition of it."""
    rank = torch.distributed.get_rank()
    low, high = rank * size, (rank + 1) * size
    segments = []
    ordered = zip(wrapped.round_robin_bit16_groups[group], wrapped.round_robin_bit16_offsets[group], strict=True)
    for param, offset in ordered:
        start, end = max(low, offset), min(high, offset + param.numel())
        if start < end:
            segments.append(Segment(names[id(param)], start - low, end - start))
    return segments
