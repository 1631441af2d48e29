"""Optimizer steps on one rank."""

from __future__ import annotations

from typing import Any

import torch

from raylm.train.config import FinetuneConfig
from raylm.train.data import Sample, collate, deal
from raylm.train.engines import Engine
from raylm.train.loop import learning_rate
from raylm.train.plan import Plan


class Trainer:
    """Takes optimizer steps of a plan on this rank."""

    def __init__(
        self,
        config: FinetuneConfig,
        engine: Engine,
        samples: list[Sample],
        plan: Plan,
        padding_id: int,
        *,
        ranks: tuple[int, int],
    ) -> None:
        """Train on `samples` in the order of `plan`; `ranks` is (rank, number of ranks)."""
        self.config, self.engine, self.samples, self.plan = config, engine, samples, plan
        self.padding_id = padding_id
        self.rank, self.world = ranks
        self.padding = 0
        engine.model.train()

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step; its log row.

        The loss is the mean over all label tokens of the global batch. Each rank adds its share, scaled by the number
        of ranks because gradients are averaged over them.

        Raises:
            FloatingPointError: loss or gradient is not finite; the message names the chains of the batch.
        """
        batch = self.plan.batch_at(step)
        labels = sum(self.samples[index].label_tokens for index in batch)
        first, end = self.plan.stage_at(step)
        rate = learning_rate(self.config, step - first, end - first)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros(1, dtype=torch.float64)
        try:
            for micro in deal(batch, self.samples, self.rank, self.world, self.config.micro_batch):
                tensors = collate([self.samples[index] for index in micro], self.padding_id)
                self.padding += int((1 - tensors["mask"]).sum()) * self.world
                tensors = {name: tensor.to(self.engine.model.device) for name, tensor in tensors.items()}
                total += self.engine.backward(tensors, self.world / labels).double().cpu()
            self.engine.step()
        except FloatingPointError as error:
            named = ", ".join(self.samples[index].id for index in batch)
            raise FloatingPointError(f"step {step + 1}: {error}; the batch holds chains {named}") from error
        if self.world > 1:
            torch.distributed.all_reduce(total)
        return {
            "step": step + 1,
            "epoch": self.plan.epoch_at(step),
            "loss": float(total) / labels,
            "lr": rate,
            "grad_norm": self.engine.optimizer.grad_norm,
            "label_tokens": labels,
            "total_tokens": sum(len(self.samples[index].ids) for index in batch),
        }
