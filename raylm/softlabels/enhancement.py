"""Label enhancement for retrieval: from scores of a query's candidates to a distribution over them.

Candidates are the documents of a batch, and only those that `allowed` marks; the relevant one is always among them.
D = (1 - share) onehot + share softmax(score / tau), with tau at a target entropy and the relevant document on top
(source: our reconstruction). What gives the scores (term weights, vectors, a relevance head, neighbours) is elsewhere:
all kinds end here, so that they differ in nothing but their scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_REACH = 0.95
"""Of ln(candidates): the most entropy that is asked of a row."""


def at_entropy(scores: np.ndarray, allowed: np.ndarray, target: float) -> np.ndarray:
    """softmax(score / tau) of each row over what is allowed, with the tau at which its entropy is `target` nats.

    Args:
        scores: [rows, candidates].
        allowed: [rows, candidates] bool, one at least in each row.
        target: nats; a row with few candidates is asked for less, and one whose highest scores are equal comes as
            near as it can.

    Returns:
        [rows, candidates], rows sum to 1, 0 where not allowed.
    """
    scores = np.where(allowed, scores, 0.0).astype(float)
    count = allowed.sum(1)
    mean = scores.sum(1) / count
    spread = np.sqrt((np.where(allowed, scores - mean[:, None], 0.0) ** 2).sum(1) / count)
    unit = np.where(allowed, scores - mean[:, None], -np.inf) / np.maximum(spread, 1e-12)[:, None]
    wanted = np.minimum(target, _REACH * np.log(np.maximum(count, 2)))
    # Two nearly equal scores at the top part only at a temperature as small as their distance.
    low, high = np.full(len(scores), -36.0), np.full(len(scores), 6.0)
    for _ in range(60):
        middle = (low + high) / 2
        less = _entropy(_softmax(unit / np.exp(middle)[:, None])) < wanted
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    return _softmax(unit / np.exp((low + high) / 2)[:, None])


def mixed(soft: np.ndarray, gold: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """(1 - share) onehot + share soft; where a candidate would pass the relevant one, the share falls to level them.

    Args:
        soft: [rows, candidates], rows sum to 1.
        gold: [rows], column of the relevant document.
        share: of the soft part, one or [rows].
    """
    rows = np.arange(len(soft))
    own = soft[rows, gold]
    others = soft.copy()
    others[rows, gold] = 0.0
    lead = np.maximum(others.max(1) - own, 0.0)
    shares = np.minimum(share, 1.0 / (1.0 + lead))[:, None]
    found = shares * soft
    found[rows, gold] += 1 - shares[:, 0]
    found[rows, gold] = np.maximum(found[rows, gold], found.max(1))  # what rounding may have taken
    return found / found.sum(1, keepdims=True)


def uniform(allowed: np.ndarray, gold: np.ndarray, share: float, entropy: float) -> np.ndarray:
    """All candidates alike, at the share whose mix has the entropy that another kind's has at most.

    That bound is the mix of the relevant document and a soft part of `entropy` nats that gives it nothing.
    """
    bound = _binary(share) + share * entropy
    count = allowed.sum(1)
    low, high = np.zeros(len(allowed)), np.ones(len(allowed))
    soft = allowed / count[:, None]
    for _ in range(40):
        middle = (low + high) / 2
        less = _entropy(mixed(soft, gold, middle)) < np.minimum(bound, _REACH * np.log(np.maximum(count, 2)))
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    return mixed(soft, gold, (low + high) / 2)


def permuted(rows: np.ndarray, allowed: np.ndarray, gold: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Each row's values shuffled among its candidates, but for the relevant one's: entropy stays, order goes."""
    found = rows.copy()
    for number, seed in enumerate(seeds):
        others = np.flatnonzero(allowed[number])
        others = others[others != gold[number]]
        found[number, others] = rows[number, np.random.default_rng(seed).permutation(others)]
    return found


class Folds:
    """A fold for every query, by a permutation from a seed; what scores a query has not seen its fold."""

    def __init__(self, queries: int, folds: int, seed: int) -> None:
        """Deal queries into folds of like size; one fold means that everything sees everything (a control)."""
        self.count = min(folds, max(1, queries))
        self.of = np.empty(queries, np.int64)
        self.of[np.random.default_rng([seed, 7]).permutation(queries)] = np.arange(queries) % self.count

    def others(self, fold: int, rows: np.ndarray) -> np.ndarray:
        """Which rows, given by the fold of their query, may be seen by the head of a fold: bool, as `rows`."""
        seen: np.ndarray = np.ones(len(rows), dtype=bool) if self.count == 1 else rows != fold
        return seen


class RelevanceHead:
    """Logistic regression on features of pairs, one for each fold of the queries, fitted on the other folds."""

    def __init__(self, folds: Folds) -> None:
        """Make a head for these folds; `fit` comes next."""
        self.folds, self.models = folds, []  # type: ignore[var-annotated]

    def fit(self, features: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> RelevanceHead:
        """Fit by binary cross-entropy.

        Args:
            features: [pairs, features].
            labels: [pairs], 1 relevant, 0 not.
            fold: [pairs], the fold of each pair's query.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.models = []
        for own in range(self.folds.count):
            rows = self.folds.others(own, fold)
            head = make_pipeline(StandardScaler(), LogisticRegression(C=1.0))
            self.models.append(head.fit(features[rows], labels[rows]))
        return self

    def coefficients(self) -> list[float]:
        """Of the standardised features, means over the folds' heads."""
        found: list[float] = np.mean([model[-1].coef_[0] for model in self.models], axis=0).tolist()
        return found

    def logits(self, features: np.ndarray, fold: int) -> np.ndarray:
        """Of pairs of queries of a fold, [...] from [..., features]."""
        flat = self.models[fold].decision_function(features.reshape(-1, features.shape[-1]))
        return np.asarray(flat).reshape(features.shape[:-1])


def _softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    found: np.ndarray = raised / raised.sum(1, keepdims=True)
    return found


def _entropy(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = -(rows * np.log(np.maximum(rows, 1e-300))).sum(1)
    return found


def _binary(share: float) -> float:
    return -sum(part * math.log(part) for part in (share, 1 - share) if part > 0)
