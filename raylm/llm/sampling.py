"""Drawing tokens from logits: one uniform number a token decides it, so a row's draw needs no other row."""

from __future__ import annotations

import numpy as np
import torch

_NUCLEUS = 1024


def uniforms(seed: int, sample: int, count: int) -> np.ndarray:
    """The numbers in [0, 1) that decide the tokens of one sample, [count]."""
    return np.random.default_rng([seed & (2**64 - 1), sample]).random(count)


def draw(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Sample by inverting the cumulative distribution.

    Args:
        logits: [rows, vocabulary], fp32.
        temperature: [rows]; 0 takes the most likely token.
        top_p: [rows]; below 1 the least likely tokens are left out, as many as leave at least this probability.
        uniform: [rows] in [0, 1).

    Returns:
        token ids, [rows].
    """
    best = logits.argmax(-1)
    if not bool((temperature > 0).any()):
        return best
    # A tiny temperature would overflow; at 1e-4 the draw is greedy but for exact ties.
    probabilities = (logits / temperature.clamp_min(1e-4)[:, None]).softmax(-1)
    narrow = torch.nonzero(top_p < 1).flatten()
    if len(narrow):
        probabilities[narrow] = _nucleus(probabilities[narrow], top_p[narrow])
    cumulative = probabilities.cumsum(-1)
    target = (uniform.to(cumulative) * cumulative[:, -1])[:, None]
    drawn = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    # Rounding can push the target to the very end; the last token with any probability is meant then.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous()).squeeze(1)
    return torch.where(temperature > 0, torch.minimum(drawn, last), best)


def log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability in nats of each row's token at temperature 1, [rows]."""
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(-1)


def _nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Zero what lies outside the smallest set of tokens that holds `top_p` of the mass."""
    for count in (min(_NUCLEUS, probabilities.shape[1]), probabilities.shape[1]):
        top, order = probabilities.topk(count, dim=-1)
        before = top.cumsum(-1) - top
        if count == probabilities.shape[1] or bool(((before + top)[:, -1] >= top_p).all()):
            break
    kept = top.masked_fill(before >= top_p[:, None], 0.0)
    return torch.zeros_like(probabilities).scatter_(1, order, kept)
