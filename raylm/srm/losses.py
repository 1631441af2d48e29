"""Losses of the reward model, each over a batch."""

from __future__ import annotations

import torch
from torch.nn import functional


def bradley_terry(chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor | None = None) -> torch.Tensor:
    """Mean negative log-likelihood that the chosen ones win, in nats.

    Args:
        chosen, rejected: scores, [pairs].
        margins: [pairs], how far apart they should be at least.

    source: Bradley and Terry (1952); -mean log sigmoid(s_c - s_r) is the method page's loss (S). The margin:
    Touvron et al. (2023), "Llama 2", eq. 2.
    """
    difference = chosen - rejected
    return -functional.logsigmoid(difference if margins is None else difference - margins).mean()


def centring(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Mean square of the pairs' sums: pairs alone leave the level of the scores open, this puts it near 0.

    source: Eisenstein et al. (2023), "Helping or herding?", section 2.
    """
    return (chosen + rejected).square().mean()


def regression(predicted: torch.Tensor, ratings: torch.Tensor) -> torch.Tensor:
    """Mean square error over the ratings that are there; 0 where a batch has none.

    Args:
        predicted: [texts].
        ratings: [texts], in standard deviations, NaN where missing.
    """
    known = torch.isfinite(ratings)
    errors = (predicted - torch.nan_to_num(ratings)).square() * known
    return errors.sum() / known.sum().clamp_min(1)
