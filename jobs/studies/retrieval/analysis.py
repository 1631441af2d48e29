"""From rows of runs to figures: means, paired differences, and how well soft scores follow people's grades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from jobs.studies.epi.analysis import RESAMPLES, interval
from jobs.studies.retrieval.arms import SOFT, Arms, Cell, Tier
from raylm.retrieval.significance import randomisation

SCORED = ("le", "le_not_crossfitted", "le_bm25_terms", "bm25", "embedding", "glle", "propagation")
"""Arms whose scores can be laid beside grades."""


def agreement(arms: Arms, cell: Cell) -> dict[str, Any]:
    """Spearman's rho of soft scores with grades over each training query's judged and mined documents, its mean."""
    found: dict[str, Any] = cell._asdict()
    for name in SCORED:
        if name not in arms.tier.soft:
            continue
        config = arms.config(cell.seed, cell.size, soft=SOFT[name])
        made = arms.run_of(config, name)
        assert made.soft is not None
        values = []
        for number in range(len(made.data.train)):
            grades = made.data.train.grades[number]
            places = np.array(
                sorted({*grades, *made.soft.pool.negatives[number]} & set(made.soft.pool.places.tolist()))
            )
            marks = [grades.get(int(place), 0) for place in places]
            scores = made.soft.scores(np.array([number]), places)[0]
            if len(set(marks)) > 1:
                values.append(float(np.nan_to_num(spearmanr(scores, marks).statistic)) if scores.std() else 0.0)
        found[name] = float(np.mean(values))
        if name == "le":
            found["coefficients"] = made.soft.facts()["coefficients"]
    return found


def summarise(
    tier: Tier, rows: Sequence[dict[str, Any]], references: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Means over seeds, with intervals over the test queries, and differences paired by query.

    A difference comes with the p-value of the paired randomisation test, as p_NAME.
    """
    found: dict[str, tuple[float, list[float]]] = {}
    tests: dict[str, float] = {}

    def compare(name: str, gap: np.ndarray) -> None:
        found[name] = interval(gap.tolist())
        tests[f"p_{name}"] = randomisation(gap.tolist(), RESAMPLES, 0)

    fixed = {name: np.array([row["nDCG@10"] for _, row in sorted(each.items())]) for name, each in references.items()}
    for name, values in fixed.items():
        found[f"ndcg10_{name}"] = interval(values)
    runs = [row for row in rows if row["loss"] != "agreement"]
    for size in tier.sizes:
        suffix = "" if size == tier.sizes[0] else "_cold"
        each = {key: _over_seeds(runs, size, *key) for key in {(row["loss"], row["soft"]) for row in runs}}
        for (loss, soft), values in sorted(each.items()):
            name = loss if soft == "none" else f"{loss}_{soft}"
            found[f"ndcg10_{name}{suffix}"] = interval(values)
            for other in ("bm25", "base"):
                mark = fixed[other]
                compare(f"{name}_minus_{other}{suffix}", values - mark)
        for loss in sorted({loss for loss, soft in each if soft == "none"} - {"quadruplet"}):
            gap = each["quadruplet", "none"] - each[loss, "none"]
            compare(f"quadruplet_minus_{loss}{suffix}", gap)
        for loss in tier.backbones:
            for soft in sorted({soft for name, soft in each if name == loss} - {"le"}):
                gap = each[loss, "le"] - each[loss, soft]
                other = "bm25_scores" if soft == "bm25" else soft  # BM25 as a retriever has its own difference
                compare(f"{loss}_le_minus_{other}{suffix}", gap)
            if (loss, "grades") in each:
                gap = each[loss, "grades"] - each[loss, "none"]
                compare(f"{loss}_grades_minus_none{suffix}", gap)
    found["ndcg10_le"] = max((found[f"ndcg10_{loss}_le"] for loss in tier.backbones), key=lambda item: item[0])
    for row in (row for row in rows if row["loss"] == "agreement" and row["size"] == tier.sizes[0]):
        for name in SCORED:
            if name in row:
                same = [other[name] for other in rows if other["loss"] == "agreement" and other["size"] == row["size"]]
                found[f"spearman_{name}"] = interval(same)
    values = {name: value for name, (value, _) in found.items()} | tests
    return values | {"trained": tier.name}, {name: bounds for name, (_, bounds) in found.items()}


def _over_seeds(runs: Sequence[dict[str, Any]], size: int, loss: str, soft: str) -> np.ndarray:
    """nDCG@10 of every test query, its mean over the seeds."""
    rows = [row["each"] for row in runs if (row["size"], row["loss"], row["soft"]) == (size, loss, soft)]
    found: np.ndarray = np.mean(rows, axis=0)
    return found
