"""Losses of a dense retriever, all over one table of similarities.

A batch holds queries q, their relevant documents d+, hard negatives h and simple ones s (the other queries' documents).
Vectors have length 1, S is the cosine and D = 1 - S the distance. Losses see the same negatives, so that they compare.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from raylm.softlabels.losses import divergence

Kind = Literal[
    "quadruplet", "quadruplet_b", "triplet", "triplet_hard", "triplet_own", "infonce", "infonce_hard", "margin_mse"
]
HARD: tuple[Kind, ...] = ("quadruplet", "quadruplet_b", "triplet_hard", "triplet_own", "infonce_hard", "margin_mse")
"""Losses that need hard negatives."""
Name = str | int


@dataclass(frozen=True)
class Margins:
    """Margins of the distance between kinds of documents, and the weight of the last term."""

    hard: float = 0.1
    """m1: relevant documents from hard negatives."""
    simple: float = 0.3
    """m2: relevant documents from simple negatives; more than m1, and at least m1 + m3."""
    between: float = 0.1
    """m3: hard negatives from simple ones."""
    weight: float = 0.5
    """lambda, of the last term; 0 leaves it out."""

    def __post_init__(self) -> None:
        if not (self.simple > self.hard > 0 and self.between > 0):
            raise ValueError(f"margins must satisfy simple > hard > 0 and between > 0, not {self}")
        if self.simple < self.hard + self.between - 1e-9:
            raise ValueError(
                f"margins: simple={self.simple} is below hard + between={self.hard + self.between}: the order of "
                "distances that the three ask for cannot be reached"
            )

    @property
    def collapsed(self) -> float:
        """The loss of an encoder that gives all texts one vector."""
        return self.hard + self.simple + self.weight * self.between


@dataclass(frozen=True)
class Candidates:
    """Vectors of a batch, and who is a negative of whom."""

    queries: torch.Tensor
    """[batch, dimensions], length 1."""
    positives: torch.Tensor
    """[batch, dimensions], the relevant document of each query."""
    hard: torch.Tensor
    """[batch, hard, dimensions]; hard may be 0."""
    allowed: torch.Tensor
    """[batch, batch + batch * hard] bool: which of all positives and hard negatives count as candidates of a query.
    Its own positive always does; another query's document that is relevant to it too never does."""

    @property
    def size(self) -> int:
        return len(self.queries)

    def similarities(self) -> torch.Tensor:
        """Cosines of queries with all positives, then all hard negatives: [batch, batch + batch * hard]."""
        documents = torch.cat([self.positives, self.hard.flatten(0, 1)])
        return self.queries @ documents.T

    def own_hard(self) -> torch.Tensor:
        """Cosines of queries with their own hard negatives, [batch, hard]."""
        return torch.einsum("qd,qhd->qh", self.queries, self.hard)

    def own_hard_allowed(self) -> torch.Tensor:
        """Which of a query's own hard negatives count, [batch, hard]."""
        count, each = self.hard.shape[:2]
        rows = torch.arange(count, device=self.allowed.device)[:, None]
        return self.allowed[rows, count + rows * each + torch.arange(each, device=self.allowed.device)]


def loss(
    kind: Kind,
    batch: Candidates,
    *,
    margins: Margins = Margins(),
    temperature: float = 0.05,
    soft: torch.Tensor | None = None,
    alpha: float = 0.0,
    soft_temperature: float | None = None,
    teacher: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mean loss of a batch.

    quadruplet: [D(q,d+) - D(q,h) + m1]+ + [D(q,d+) - D(q,s) + m2]+ + lambda [D(q,h) - D(q,s) + m3]+ (source: our
        reconstruction); quadruplet_b has D(d+,h)'s neighbour D(h,s) in the last term: [D(q,d+) - D(h,s) + m3]+
        (source: a related paper, Chen et al. 2017).
    triplet: its second term alone; triplet_own: its first; triplet_hard: both.
    infonce: cross-entropy over all positives of the batch; infonce_hard: over the hard negatives as well.
    margin_mse: squared difference of S(q,d+) - S(q,h) from that of a teacher (source: a related paper).

    Args:
        soft: [batch, candidates] target distributions over what `similarities` lists; adds alpha KL(soft || softmax).
        soft_temperature: of the softmax in that divergence, where it is another than that of infonce.
        teacher: [batch, 1 + hard], a teacher's scores of the positive and of the own hard negatives, for margin_mse.

    Raises:
        ValueError: the loss needs hard negatives or a teacher, and there are none.
    """
    if kind in HARD and batch.hard.shape[1] == 0:
        raise ValueError(f"loss {kind} needs hard negatives")
    table = batch.similarities()
    if kind.startswith("infonce"):
        width = table.shape[1] if kind == "infonce_hard" else batch.size
        logits = (table / temperature).masked_fill(~batch.allowed, float("-inf"))[:, :width]
        value = F.cross_entropy(logits, torch.arange(batch.size, device=logits.device))
    elif kind == "margin_mse":
        if teacher is None:
            raise ValueError("loss margin_mse needs a teacher's scores")
        gaps = table.diagonal()[:, None] - batch.own_hard()
        value = F.mse_loss(gaps, teacher[:, :1] - teacher[:, 1:])
    else:
        value = _margin(kind, batch, table, margins)
    if soft is not None and alpha:
        logits = (table / (soft_temperature or temperature)).masked_fill(~batch.allowed, float("-inf"))
        value = value + alpha * divergence(logits, soft)
    return value


def _margin(kind: Kind, batch: Candidates, table: torch.Tensor, margins: Margins) -> torch.Tensor:
    """Hinges on distances, each averaged over the negatives that count."""
    close = 1 - table.diagonal()[:, None]
    simple = 1 - table[:, : batch.size]
    others = batch.allowed[:, : batch.size] & ~torch.eye(batch.size, dtype=torch.bool, device=table.device)
    value = close.sum() * 0.0
    if kind != "triplet_own":
        value = value + _hinge(close - simple + margins.simple, others)
    if kind == "triplet":
        return value
    hard, counts = 1 - batch.own_hard(), batch.own_hard_allowed()
    value = value + _hinge(close - hard + margins.hard, counts)
    if kind in ("triplet_own", "triplet_hard") or margins.weight == 0:
        return value
    both = counts[:, :, None] & others[:, None, :]
    if kind == "quadruplet":
        last = hard[:, :, None] - simple[:, None, :] + margins.between
    else:
        last = close[:, :, None] - (1 - torch.einsum("qhd,sd->qhs", batch.hard, batch.positives)) + margins.between
    return value + margins.weight * _hinge(last, both)


def _hinge(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mean of the positive parts over what counts; 0 where nothing does."""
    return (values.clamp_min(0.0) * counts).sum() / counts.sum().clamp_min(1)


def allowed(positives: Sequence[Name], hard: Sequence[Sequence[Name]], relevant: Sequence[Set[Name]]) -> torch.Tensor:
    """Which documents count as candidates of a query; see `Candidates`.

    Args:
        positives: each query's positive, by id or by place.
        hard: each query's hard negatives, equally many.
        relevant: everything that is relevant to each query.
    """
    documents = np.array([*positives, *(name for names in hard for name in names)])
    names, first, codes = np.unique(documents, return_index=True, return_inverse=True)
    # A document that is there several times counts once, and the own positive in its own place.
    once = np.zeros(len(documents), dtype=bool)
    once[first] = True
    known = np.zeros((len(positives), len(names)), dtype=bool)
    known[np.arange(len(positives)), codes[: len(positives)]] = True
    for row, own in enumerate(relevant):
        known[row] |= np.isin(names, list(own))
    found = once & ~known[:, codes]
    found[np.arange(len(positives)), np.arange(len(positives))] = True
    return torch.from_numpy(found)


@dataclass
class CollapseAlarm:
    """Says when all texts are getting one vector."""

    patience: int = 20
    """Steps in a row."""
    spread: float = 0.02
    """Mean distance between the vectors of a batch below which it counts."""
    low: int = 0

    def see(self, vectors: torch.Tensor) -> bool:
        """Look at unit vectors [texts, dimensions]; True once the spread was too low for `patience` steps."""
        count = len(vectors)
        total = vectors.detach().float().sum(0).square().sum()
        mean = 1 - (float(total) - count) / max(1, count * (count - 1))
        self.low = self.low + 1 if mean < self.spread else 0
        return self.low >= self.patience
