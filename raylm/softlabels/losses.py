"""Losses that take distributions as targets; for classifiers, and for retrievers over their candidates."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

Mode = Literal["single_head", "kl", "two_head"]


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with target distributions, mean over the rows.

    Args:
        logits: [batch, candidates]; -inf for what is no candidate of a row.
        targets: [batch, candidates], rows sum to 1, 0 where a logit is -inf; no gradient flows into it.
    """
    log = F.log_softmax(logits.float(), dim=-1)
    return -torch.where(targets > 0, targets.detach() * log, 0.0).sum(-1).mean()


def divergence(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """KL(targets || softmax(logits)), summed over candidates and averaged over rows; shapes as `soft_cross_entropy`."""
    fixed = targets.detach().float()
    own = torch.where(fixed > 0, fixed * fixed.clamp_min(1e-30).log(), 0.0).sum(-1).mean()
    return soft_cross_entropy(logits, fixed) + own


def combined(
    logits: torch.Tensor, gold: torch.Tensor, soft: torch.Tensor, *, mode: Mode, alpha: float,
    auxiliary: torch.Tensor | None = None, weights: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The loss of a batch with hard and soft labels.

    single_head: (1 - alpha) CE(gold) + alpha CE(soft), alpha in [0, 1] (source: our choice; no further parameters).
    kl: CE(gold) + alpha KL(soft || softmax(logits)) (source: our choice).
    two_head: (CE(gold) + alpha MSE(softmax(auxiliary), soft)) / (1 + alpha)^2, where a second head gives the auxiliary
        logits (source: released code). The divisor lowers the effective learning rate; that is the published form.

    Args:
        logits: [batch, labels].
        gold: [batch], int64.
        soft: [batch, labels], rows sum to 1.
        auxiliary: [batch, labels], for two_head.
        weights: [batch], of the texts in the hard part, whose mean is over the number of texts.
    """
    each = F.cross_entropy(logits.float(), gold, reduction="none")
    hard = (each if weights is None else each * weights).mean()
    if mode == "two_head":
        if auxiliary is None:
            raise ValueError("mode two_head needs the logits of the auxiliary head")
        distance = F.mse_loss(torch.softmax(auxiliary.float(), -1), soft.detach().float())
        return (hard + alpha * distance) / (1 + alpha) ** 2
    if mode == "kl":
        return hard + alpha * divergence(logits, soft)
    return (1 - alpha) * hard + alpha * soft_cross_entropy(logits, soft)
