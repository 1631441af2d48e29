"""Who holds the weights and steps: plain PyTorch on one worker, or DeepSpeed ZeRO on any number."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from raylm.train.config import FinetuneConfig
from raylm.train.isolation import IsolatedAdamW, Isolation, Segment, whole
from raylm.train.isolation.fragments import Fragment, Fragments
from raylm.train.loop import Batch, Objective
from raylm.train.penalty import Penalty

Held: TypeAlias = list[tuple[torch.Tensor, Sequence[Segment]]]
"""Flat parameters of a rank, each with the tensors that it holds parts of."""


class TorchEngine:
    """Plain PyTorch on one worker."""

    def __init__(self, model: Any, config: FinetuneConfig, steps: int) -> None:
        """Train `model` in `steps` optimizer steps."""
        self.model, self.objective = model, Objective(model)
        self.optimizer = make_optimizer(model, config)
        self.held: Held = whole(model)
        self.half = config.precision == "bfloat16"
        isolate(self, config, steps)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """What `Objective` returns for a micro-batch."""
        device = self.model.device.type
        with torch.autocast(device, torch.bfloat16) if self.half else contextlib.nullcontext():
            return self.objective(**batch)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch."""
        loss.backward()

    def step(self) -> None:
        """Take the optimizer's step and clear gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self) -> dict[str, torch.Tensor]:
        """The trainable weights by name, in float32 where the training keeps them so; whole on rank 0."""
        return {name: param.detach() for name, param in self.model.named_parameters() if param.requires_grad}


class DeepSpeedEngine:
    """DeepSpeed ZeRO 1, 2 or 3: gradients are summed and partitioned by it, the step on a partition is ours."""

    def __init__(self, model: Any, config: FinetuneConfig, world: int, steps: int) -> None:
        """Train `model`, of which every rank has all weights, in `steps` optimizer steps."""
        import deepspeed
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        # Its shared-memory all-reduce would be compiled for a minute at first use; gloo does the same sums.
        deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
        shapes = {
            id(param): (name, tuple(param.shape)) for name, param in model.named_parameters() if param.requires_grad
        }
        self.optimizer, self.model, self.zero = make_optimizer(model, config), model, config.zero
        self.engine, wrapped, *_ = deepspeed.initialize(
            model=Objective(model), optimizer=self.optimizer, config=_settings(config, world)
        )
        self.optimizer.partitioned = world > 1
        self.held: Held = _stage3(wrapped, shapes) if self.zero == 3 else _stage12(wrapped, shapes)
        self.optimizer.padding = [(flat, _gaps(flat.numel(), segments)) for flat, segments in self.held]
        isolate(self, config, steps)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """What `Objective` returns for a micro-batch; all ranks together at stage 3."""
        return self.engine(**batch)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch; the loss carries its whole weight already."""
        self.engine.backward(loss, scale_wrt_gas=False)
        self.engine.step()

    def step(self) -> None:
        """The engine has stepped with the last micro-batch, unless a gradient was not finite on some rank.

        Raises:
            FloatingPointError: it was not, so that DeepSpeed took no step; on all ranks alike.
        """
        if self.engine.skipped_steps:
            raise FloatingPointError("the gradient is not finite")

    def weights(self) -> dict[str, torch.Tensor]:
        """The trainable weights by name, whole on rank 0 and empty on the others; all ranks together."""
        named = [(name, param) for name, param in self.model.named_parameters() if param.requires_grad]
        if self.zero < 3:
            return {name: param.detach() for name, param in named} if torch.distributed.get_rank() == 0 else {}
        import deepspeed

        found = {}
        for name, param in named:  # one at a time: no rank has room for all of a large model
            with deepspeed.zero.GatheredParameters([param]):
                if torch.distributed.get_rank() == 0:
                    found[name] = param.detach().cpu().clone()
        return found


Engine: TypeAlias = "TorchEngine | DeepSpeedEngine"


def make_engine(model: Any, config: FinetuneConfig, world: int, steps: int) -> Engine:
    """The engine that `config.engine` names, for one of `world` workers and a run of `steps` optimizer steps."""
    if config.engine == "deepspeed":
        return DeepSpeedEngine(model, config, world, steps)
    return TorchEngine(model, config, steps)


def make_optimizer(model: Any, config: FinetuneConfig) -> IsolatedAdamW:
    """The optimizer over the trainable parameters."""
    return IsolatedAdamW(
        [param for param in model.parameters() if param.requires_grad],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=1e-8,
        weight_decay=config.weight_decay,
        clip=config.clip,
    )


def isolate(engine: Engine, config: FinetuneConfig, steps: int) -> None:
    """Give an engine's optimizer the isolation and the penalty that the config asks for."""
    if config.penalty is not None:
        engine.optimizer.penalty = Penalty(config.penalty, engine.held)
    if config.isolation.enabled:
        engine.optimizer.isolate(Isolation(config.isolation, engine.held, steps=steps))


def collect(engine: Engine) -> list[Fragment]:
    """This rank's weights and moments, tensor by tensor."""
    found: list[Fragment] = []
    for flat, segments in engine.held:
        state = engine.optimizer.state[flat]
        for segment in segments:
            window = slice(segment.start, segment.start + segment.length)
            found.append({
                "name": segment.name, "shape": segment.shape, "offset": segment.offset,
                "value": flat.detach().view(-1)[window],
                "exp_avg": state["exp_avg"].view(-1)[window], "exp_avg_sq": state["exp_avg_sq"].view(-1)[window],
            })  # fmt: skip
    return found


def restore(engine: Engine, fragments: Fragments, optimizer_steps: int) -> None:
    """Put the weights and moments of all ranks of a run into this rank of it or of another."""
    for flat, segments in engine.held:
        state = {
            "step": torch.tensor(float(optimizer_steps), device=flat.device),
            "exp_avg": torch.zeros_like(flat.detach()),
            "exp_avg_sq": torch.zeros_like(flat.detach()),
        }
        for segment in segments:
            window = slice(segment.start, segment.start + segment.length)
            for key in ("exp_avg", "exp_avg_sq", "value"):
                values = fragments.assemble(segment, key)
                assert values is not None
                target = flat.detach() if key == "value" else state[key]
                target.view(-1)[window] = values.to(flat.device)
        engine.optimizer.state[flat] = state


def _settings(config: FinetuneConfig, world: int) -> dict[str, Any]:
    """DeepSpeed's config."""
    zero: dict[str, Any] = {"stage": config.zero}
    if config.zero == 3:
        # One group, one step: the norm that clips is that of all parameters. Smaller groups serve offloading.
        zero |= {"sub_group_size": 1 << 62, "stage3_prefetch_bucket_size": 50_000_000}
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": math.ceil(config.batch_size / world / config.micro_batch),
        "gradient_clipping": 0.0,  # it clips to 1 unless told not to; ours comes after importance was measured
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.precision == "bfloat16"},
        "steps_per_print": 2**31,
    }


def _stage12(wrapped: Any, shapes: dict[int, tuple[str, tuple[int, ...]]]) -> Held:
    """Where the tensors lie in this rank's partitions of stages 1 and 2: a flat range of all of them end to end."""
    rank, held = torch.distributed.get_rank(), Held()
    for group, flat in enumerate(wrapped.single_partition_of_fp32_groups):
        size, segments = flat.numel(), []
        low, high = rank * size, (rank + 1) * size
        ordered = zip(wrapped.round_robin_bit16_groups[group], wrapped.round_robin_bit16_offsets[group], strict=True)
        for param, offset in ordered:
            start, end = max(low, offset), min(high, offset + param.numel())
            if start < end:
                name, shape = shapes[id(param)]
                segments.append(Segment(name, start - low, end - start, start - offset, shape))
        held.append((flat, segments))
    return held


def _stage3(wrapped: Any, shapes: dict[int, tuple[str, tuple[int, ...]]]) -> Held:
    """Where the tensors lie in this rank's partitions of stage 3: an equal share of each, the last one padded."""
    rank, held = torch.distributed.get_rank(), Held()
    for flat, params in zip(wrapped.fp32_partitioned_groups_flat, wrapped.fp16_groups, strict=True):
        segments, start = [], 0
        for param in params:
            share = param.partition_numel()
            length = max(0, min(share, param.ds_numel - rank * share))
            if length:
                name, shape = shapes[id(param)]
                segments.append(Segment(name, start, length, rank * share, shape))
            start += share
        held.append((flat, segments))
    return held


def _gaps(size: int, segments: Sequence[Segment]) -> list[slice]:
    """What of a flat parameter belongs to no tensor."""
    gaps, end = [], 0
    for segment in segments:
        if segment.start > end:
            gaps.append(slice(end, segment.start))
        end = segment.start + segment.length
    return [*gaps, slice(end, size)] if end < size else gaps
