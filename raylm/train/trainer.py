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
        self.seen: list[tuple[int, str, float, float]] = []
        """What this rank has trained on: step, sample, nats a label token, share of its label tokens that were the
        likeliest, both before the step."""
        engine.model.train()

    @torch.no_grad()
    def look(self, samples: list[Sample]) -> dict[str, float]:
        """Loss and accuracy on held-out samples; all ranks together.

        Returns:
            loss (nats a label token), token_accuracy, and exact: the share of samples whose every label token is the
            likeliest one after those before it, which is that of the samples that greedy decoding would give.
        """
        sums = torch.zeros(4, dtype=torch.float64)
        mine = samples[self.rank :: self.world]
        share = -(-len(samples) // self.world)  # every rank makes as many passes: weights are gathered in them
        micro = self.config.micro_batch
        self.engine.model.eval()
        for start in range(0, share, micro):
            part = mine[start : start + micro]
            tensors = self._batch(part or samples[:1])
            _, each = self.engine.forward(tensors)
            for sample, (loss, right) in zip(part, each.double().cpu().tolist(), strict=False):
                sums += torch.tensor([loss, right, right == sample.label_tokens, 1.0]).double()
        self.engine.model.train()
        if self.world > 1:
            torch.distributed.all_reduce(sums)
        labels = sum(sample.label_tokens for sample in samples)
        return {
            "loss": float(sums[0]) / labels,
            "token_accuracy": float(sums[1]) / labels,
            "exact": float(sums[2] / sums[3]),
        }

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
        isolation = self.engine.optimizer.isolation
        if isolation is not None:
            isolation.task = self.plan.task_at(step)
        try:
            for micro in deal(batch, self.samples, self.rank, self.world, self.config.micro_batch):
                tensors = self._tensors(micro)
                if "mask" in tensors:
                    self.padding += int((1 - tensors["mask"]).sum()) * self.world
                loss, each = self.engine.forward(tensors)
                total += loss.detach().double().cpu()
                self.engine.backward(loss * (self.world / labels))
                self.seen += self._rows(step, micro, each)
            self.engine.step()
            if self.world > 1:
                torch.distributed.all_reduce(total)
            if not torch.isfinite(total):
                raise FloatingPointError(f"the loss is {float(total)}")
        except FloatingPointError as error:
            named = ", ".join(self.samples[index].id for index in batch)
            raise FloatingPointError(f"step {step + 1}: {error}; the batch holds chains {named}") from error
        return {
            "step": step + 1,
            "epoch": self.plan.epoch_at(step),
            "loss": float(total) / labels,
            "lr": rate,
            "grad_norm": self.engine.optimizer.grad_norm,
            "label_tokens": labels,
            "total_tokens": sum(len(self.samples[index].ids) for index in batch),
        }

    def _tensors(self, micro: list[int]) -> dict[str, torch.Tensor]:
        return self._batch([self.samples[index] for index in micro])

    def _batch(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        tensors = collate(samples, self.padding_id, self.config.packing)
        return {name: tensor.to(self.engine.model.device) for name, tensor in tensors.items()}

    def _rows(self, step: int, micro: list[int], each: torch.Tensor) -> list[tuple[int, str, float, float]]:
        rows = []
        for index, (loss, right) in zip(micro, each.cpu().tolist(), strict=True):
            sample = self.samples[index]
            rows.append((step + 1, sample.id, loss / sample.label_tokens, right / sample.label_tokens))
        return rows
