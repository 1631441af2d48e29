"""Scores to label distributions, the mix with the gold label, and the distributions that keywords are compared with."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.special import softmax

Rows = np.ndarray
"""[texts, labels], not negative, every row sums to 1."""
LEAST = 1e-9
"""What a label counts for at least where rows and columns are balanced; with zeros there may be no solution."""


def from_scores(scores: np.ndarray, temperature: float) -> Rows:
    """softmax(score / temperature) of each row. The published temperature is the mean number of words of a text."""
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} is not positive")
    return softmax(scores / temperature, axis=1)


def fit_temperature(scores: np.ndarray, gold: np.ndarray) -> float:
    """The temperature at which scores give held-out gold labels the highest likelihood (source: our choice).

    Searched from a hundredth of the scores' spread to a hundred times it; scores without any spread give 1.
    """
    from scipy.optimize import minimize_scalar

    spread = float(scores.std())
    if spread == 0:
        return 1.0
    rows = np.arange(len(gold))

    def surprise(log: float) -> float:
        found = from_scores(scores, spread * float(np.exp(log)))
        return -float(np.log(np.maximum(found[rows, gold], 1e-300)).mean())

    best = minimize_scalar(surprise, bounds=(np.log(0.01), np.log(100.0)), method="bounded")
    return spread * float(np.exp(best.x))


def entropy(rows: Rows) -> np.ndarray:
    """Of each row, in nats."""
    return -(rows * np.log(np.maximum(rows, 1e-300))).sum(1)


def at_entropy(scores: np.ndarray, target: float) -> Rows:
    """Each row at the temperature at which its entropy is `target` nats (source: our choice).

    A row whose scores cannot reach it, because of equal highest scores, comes as near as it can.

    Raises:
        ValueError: the target is not between 0 and ln(labels).
    """
    limit = np.log(scores.shape[1])
    if not 0 < target < limit:
        raise ValueError(f"target entropy {target} is not between 0 and ln({scores.shape[1]}) = {limit:.3f}")
    spread = np.maximum(scores.std(1), 1e-12)
    low, high = np.full(len(scores), -36.0), np.full(len(scores), 12.0)
    for _ in range(70):
        middle = (low + high) / 2
        less = entropy(softmax(scores / (spread * np.exp(middle))[:, None], axis=1)) < target
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    return softmax(scores / (spread * np.exp((low + high) / 2))[:, None], axis=1)


def onehot(gold: np.ndarray, labels: int) -> Rows:
    """The hard labels."""
    found = np.zeros((len(gold), labels))
    found[np.arange(len(gold)), gold] = 1.0
    return found


def mix(soft: Rows, gold: np.ndarray, share: float, *, guard: bool = True) -> Rows:
    """(1 - share) onehot + share soft, where the gold label stays on top (source: our choice).

    Where another label would pass it, that row's share is lowered until the two are level; without the guard it is not.
    """
    if not guard:
        return (1 - share) * onehot(gold, soft.shape[1]) + share * soft
    rows = np.arange(len(gold))
    others = soft.copy()
    others[rows, gold] = -1.0
    lead = others.max(1) - soft[rows, gold]
    shares = np.minimum(share, 1.0 / (1.0 + np.maximum(lead, 0.0)))[:, None]
    mixed = (1 - shares) * onehot(gold, soft.shape[1]) + shares * soft
    mixed[rows, gold] = np.maximum(mixed[rows, gold], mixed.max(1))  # what rounding may have taken
    return mixed / mixed.sum(1, keepdims=True)


def uniform(count: int, labels: int) -> Rows:
    """All labels alike: plain label smoothing."""
    return np.full((count, labels), 1.0 / labels)


def prior(gold: np.ndarray, labels: int) -> Rows:
    """Every row is the share of each label in the training set."""
    return np.tile(np.bincount(gold, minlength=labels) / len(gold), (len(gold), 1))


def balanced(soft: Rows, gold: np.ndarray, rounds: int = 200) -> Rows:
    """As much for the gold label of a row, and in total for every other label, as `uniform` gives (source: our choice).

    Which texts give a label its share follows `soft`: rows and columns of what is not gold are scaled in turn until
    both sums fit (Sinkhorn and Knopp, 1967). Under a long tail plain smoothing moves mass from the head's texts to the
    tail's labels; soft labels that follow how often a label occurs do not.
    """
    count, labels = soft.shape
    rows = np.arange(count)
    found = np.maximum(soft, LEAST)
    found[rows, gold] = 0.0
    wanted = (count - np.bincount(gold, minlength=labels)) / labels
    for _ in range(rounds):
        found *= (wanted / np.maximum(found.sum(0), 1e-300))[None]
        found *= (1 - 1 / labels) / found.sum(1, keepdims=True)
    found[rows, gold] = 1.0 / labels
    return found


def permuted(soft: Rows, gold: np.ndarray, seed: int) -> Rows:
    """The same values for the same gold label, and those of the other labels shuffled in each row.

    The control for everything in soft labels that is not about which labels are alike: entropy, confidence.
    """
    draws = np.random.default_rng(seed)
    found = soft.copy()
    for row, label in zip(found, gold, strict=True):
        others = np.delete(np.arange(soft.shape[1]), label)
        row[others] = row[draws.permutation(others)]
    return found


def neighbours(vectors: np.ndarray, count: int) -> sparse.csr_matrix:
    """Symmetric graph of the `count` nearest neighbours of every vector by cosine, with similarities above 0."""
    from sklearn.neighbors import kneighbors_graph

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    graph = kneighbors_graph(unit, min(count, len(unit) - 1), mode="distance", include_self=False)
    graph.data = np.maximum(1 - graph.data**2 / 2, 0.0)  # of unit vectors: |a - b|^2 = 2 - 2 cos
    return graph.maximum(graph.T).tocsr()


def propagated(graph: sparse.csr_matrix, gold: np.ndarray, labels: int, share: float = 0.5, rounds: int = 50) -> Rows:
    """Label propagation: F = share S F + (1 - share) Y with S the graph at symmetric degree normalisation."""
    degrees = np.maximum(np.asarray(graph.sum(1)).ravel(), 1e-12)
    scale = sparse.diags(degrees**-0.5)
    smooth, hard = scale @ graph @ scale, onehot(gold, labels)
    found = hard.copy()
    for _ in range(rounds):
        found = share * (smooth @ found) + (1 - share) * hard
    return found / found.sum(1, keepdims=True)


def glle(
    vectors: np.ndarray,
    graph: sparse.csr_matrix,
    gold: np.ndarray,
    labels: int,
    *,
    smoothness: float = 0.1,
    ridge: float = 1.0,
) -> np.ndarray:
    """Scores by graph-Laplacian label enhancement with linear features, in closed form.

    min over W of |X W - Y|^2 + smoothness tr((X W)' L (X W)) + ridge |W|^2, L the graph's Laplacian (source: a related
    paper, GLLE; linear features are our choice). Distributions are `from_scores` or `at_entropy` of these.
    """
    features = np.hstack([vectors, np.ones((len(vectors), 1))])
    laplacian = sparse.diags(np.asarray(graph.sum(1)).ravel()) - graph
    left = features.T @ features + smoothness * (features.T @ (laplacian @ features))
    weights = np.linalg.solve(left + ridge * np.eye(left.shape[0]), features.T @ onehot(gold, labels))
    return features @ weights
