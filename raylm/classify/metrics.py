"""How good and how well calibrated label probabilities are."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import f1_score, recall_score


def calibration_error(probabilities: np.ndarray, gold: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over equally wide bins of confidence.

    source: Guo et al. (2017), "On calibration of modern neural networks", eq. 5.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == gold
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    sums = [np.bincount(places, values, minlength=bins) for values in (confidence, right.astype(float))]
    return float(np.abs(sums[0] - sums[1]).sum() / len(gold))


def reliability(probabilities: np.ndarray, gold: np.ndarray, bins: int = 15) -> list[dict[str, float]]:
    """A row for every bin of confidence that is not empty: texts, confidence, accuracy."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == gold
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = []
    for place in np.unique(places):
        there = places == place
        means = {"confidence": float(confidence[there].mean()), "accuracy": float(right[there].mean())}
        rows.append({"texts": int(there.sum()), **means})
    return rows


def measure(probabilities: np.ndarray, gold: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """All figures of a set of texts.

    Args:
        probabilities: [texts, labels].
        gold: [texts].
        counts: [labels], training texts of each label; the third with fewest of them is the tail.

    Returns:
        accuracy, macro_f1 (over the labels that the set or the prediction holds), tail_recall (mean over the tail's
        labels that the set holds; 0 where it holds none), ece and nll (nats).
    """
    predicted = probabilities.argmax(1)
    tail = [label for label in np.argsort(counts, kind="stable")[: max(1, len(counts) // 3)] if (gold == label).any()]
    recall = recall_score(gold, predicted, labels=tail, average="macro", zero_division=0) if tail else 0.0
    own = np.maximum(probabilities[np.arange(len(gold)), gold], 1e-12)
    return {
        "accuracy": float((predicted == gold).mean()),
        "macro_f1": float(f1_score(gold, predicted, average="macro", zero_division=0)),
        "tail_recall": float(recall),
        "ece": calibration_error(probabilities, gold),
        "nll": float(-np.log(own).mean()),
    }
