"""What a training step computes, on any engine: the loss over labelled positions only, and the learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from raylm.llm.chat import IGNORE
from raylm.train.config import FinetuneConfig

Batch = dict[str, torch.Tensor]


class Objective(nn.Module):
    """A causal language model with the loss of its forward pass: what the engines wrap and call."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        ids: torch.Tensor,
        labels: torch.Tensor,
        owner: torch.Tensor,
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the cross entropies of the labelled tokens, in nats, and what each sample had of it.

        Logits are made for labelled positions alone: with a vocabulary of 49k that spares a fifth of a small model's
        work.

        Args:
            ids: (rows, tokens).
            labels: the ids to be predicted, IGNORE elsewhere, (rows, tokens).
            owner: number of the sample of each token, counted from 0, (rows, tokens).
            mask: 1 where there is a token, (rows, tokens); None where samples are laid end to end.
            positions: of each token in its sample, (rows, tokens), where samples are laid end to end.

        Returns:
            the sum, and (samples, 2): the loss of each sample, and how many of its labelled tokens are the likeliest.
        """
        backbone = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        hidden = backbone.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        targets = labels[:, 1:]
        wanted = targets != IGNORE
        logits = backbone.lm_head(hidden[:, :-1][wanted]).float()
        losses = F.cross_entropy(logits, targets[wanted], reduction="none")
        with torch.no_grad():
            right = (logits.argmax(-1) == targets[wanted]).float()
            each = torch.zeros(int(owner.max()) + 1, 2, device=losses.device)
            each.index_add_(0, owner[:, 1:][wanted], torch.stack([losses.detach(), right], 1))
        return losses.sum(), each


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
