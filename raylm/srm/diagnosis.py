"""What is right and wrong with a reward model's scores, and which dimension is at fault."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylm.srm import calibration

MATCHED = 0.1
"""Pairs whose responses' lengths differ by at most this share of the longer one are length-matched."""
EXAMPLES = 8
"""Bad cases of each dimension that are shown."""


@dataclass(frozen=True)
class Scored:
    """Texts with what a model said of them."""

    names: tuple[str, ...]
    """Of the branches."""
    texts: Sequence[tuple[Any, str]]
    """Prompt and response."""
    scores: np.ndarray
    """[texts]."""
    values: np.ndarray
    """[texts, branches], NaN where a branch is absent."""
    attributions: np.ndarray
    """[texts, branches]."""


def accuracy(differences: np.ndarray) -> float:
    """Share of pairs whose chosen response scores higher; ties count a half."""
    if not len(differences):
        return float("nan")
    return float(np.where(differences == 0, 0.5, differences > 0).mean())


def length_matched(differences: np.ndarray, lengths: np.ndarray) -> tuple[float, int]:
    """Accuracy over pairs of about the same length, and how many there are: no length bias helps there.

    Args:
        lengths: words of the chosen and the rejected response, [pairs, 2].
    """
    alike = np.abs(lengths[:, 0] - lengths[:, 1]) <= MATCHED * lengths.max(1)
    return accuracy(differences[alike]), int(alike.sum())


def longer_wins(differences: np.ndarray, lengths: np.ndarray) -> float:
    """Share of pairs of different length in which the longer response scores higher."""
    apart = lengths[:, 0] != lengths[:, 1]
    higher = np.where(differences > 0, lengths[:, 0] - lengths[:, 1], lengths[:, 1] - lengths[:, 0])
    return float((higher[apart] > 0).mean()) if apart.any() else float("nan")


def agreement(values: np.ndarray, ratings: np.ndarray) -> dict[str, float]:
    """Spearman's and Kendall's correlation (tau-b) of a branch with the ratings of its dimension.

    Args:
        values, ratings: [texts], NaN where missing.

    Returns:
        texts, spearman, kendall; the correlations are NaN for fewer than three texts or without variance.
    """
    from scipy.stats import kendalltau, spearmanr

    known = np.isfinite(values) & np.isfinite(ratings)
    first, second = values[known], ratings[known]
    found = {"texts": float(known.sum()), "spearman": float("nan"), "kendall": float("nan")}
    if known.sum() < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return found
    return found | {
        "spearman": float(spearmanr(first, second).statistic),
        "kendall": float(kendalltau(first, second).statistic),
    }


def fault(attributions: np.ndarray) -> np.ndarray:
    """The branch that did most to rank each pair as it is not, [pairs].

    Args:
        attributions: of the chosen response less those of the rejected one, [pairs, branches].
    """
    return attributions.argmin(1)


def bad_cases(scored: Scored, pairs: np.ndarray, examples: int = EXAMPLES) -> list[dict[str, Any]]:
    """Pairs ranked wrongly, grouped by the dimension at fault, the most frequent group first.

    Args:
        pairs: [pairs, 2], places of chosen and rejected.

    Returns:
        a row for every group: dimension, pairs, share of all that are wrong, and its worst examples.
    """
    differences = scored.scores[pairs[:, 0]] - scored.scores[pairs[:, 1]]
    wrong = np.flatnonzero(differences < 0)
    if not len(wrong):
        return []
    shares = scored.attributions[pairs[wrong, 0]] - scored.attributions[pairs[wrong, 1]]
    guilty = fault(shares)
    groups = []
    for branch, count in Counter(guilty.tolist()).most_common():
        own = np.flatnonzero(guilty == branch)
        worst = own[np.argsort(differences[wrong[own]], kind="stable")][:examples]
        rows = [_example(scored, pairs[wrong[row]], float(differences[wrong[row]]), shares[row]) for row in worst]
        share = count / len(wrong)
        groups.append({"dimension": scored.names[branch], "pairs": count, "share": share, "examples": rows})
    return groups


def measure(scored: Scored, pairs: np.ndarray) -> dict[str, Any]:
    """All figures of a set of pairs.

    Returns:
        pairs, pair_accuracy, pair_nll (nats), ece, length_matched_accuracy, length_matched_pairs, longer_wins, and for
        each branch alone its own pair accuracy.
    """
    if not len(pairs):
        return {"pairs": 0}
    differences = scored.scores[pairs[:, 0]] - scored.scores[pairs[:, 1]]
    lengths = np.array([len(scored.texts[place][1].split()) for place in pairs.flatten()]).reshape(-1, 2)
    matched, count = length_matched(differences, lengths)
    alone = scored.attributions[pairs[:, 0]] - scored.attributions[pairs[:, 1]]
    return {
        "pairs": len(pairs),
        "pair_accuracy": accuracy(differences),
        "pair_nll": float(np.logaddexp(0.0, -differences).mean()),
        "ece": calibration.error(calibration.curve(differences)),
        "length_matched_accuracy": matched,
        "length_matched_pairs": count,
        "longer_wins": longer_wins(differences, lengths),
        "branch_alone": {name: accuracy(alone[:, n]) for n, name in enumerate(scored.names)},
        "mean_share": {name: float(np.abs(alone[:, n]).mean()) for n, name in enumerate(scored.names)},
    }


def rows(scored: Scored, pairs: np.ndarray) -> list[dict[str, Any]]:
    """Every pair with both scores and what each branch did to their difference."""
    found = []
    for chosen, rejected in pairs.tolist():
        shares = scored.attributions[chosen] - scored.attributions[rejected]
        found.append({
            "prompt": str(scored.texts[chosen][0])[:200], "chosen": scored.texts[chosen][1][:400],
            "rejected": scored.texts[rejected][1][:400], "chosen_score": float(scored.scores[chosen]),
            "rejected_score": float(scored.scores[rejected]),
            **{f"share_{name}": float(share) for name, share in zip(scored.names, shares, strict=True)},
        })  # fmt: skip
    return found


def known(figures: Any) -> Any:
    """Figures as JSON knows them: None for those that are not numbers, at any depth."""
    if isinstance(figures, dict):
        return {name: known(value) for name, value in figures.items()}
    return None if isinstance(figures, float) and math.isnan(figures) else figures


def _example(scored: Scored, pair: np.ndarray, difference: float, shares: np.ndarray) -> dict[str, Any]:
    prompt, chosen = scored.texts[pair[0]]
    return {
        "prompt": str(prompt)[:600], "chosen": chosen[:600], "rejected": scored.texts[pair[1]][1][:600],
        "difference": difference,
        "shares": {name: float(share) for name, share in zip(scored.names, shares, strict=True)},
    }  # fmt: skip
