"""Figures of the study out of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.studies.epi.analysis import interval
from jobs.studies.ilp.baselines import FEATURES, predictions
from jobs.studies.ilp.matrix import FIXES
from raylm.evaluation.stats import wilson
from raylm.ilp.config import CAUSES

Rows = Sequence[Mapping[str, Any]]
Found = dict[str, tuple[float, Sequence[float]]]
"""Figure to its value and its 95% interval."""


def summarise(tried: Rows, rows: Rows) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """All figures and intervals; `tried` are rows of the development seeds, which are in no figure."""
    samples = [row for row in rows if row["kind"] == "sample"]
    repairs = [row for row in rows if row["kind"] == "repair"]
    figures: dict[str, Any] = {}
    found = _prevalence(samples)
    for suffix, chosen in (("", _unlearned), ("_written", _unwritten)):
        scores, confusion = _attribution([row for row in tried if row["kind"] == "sample"], samples, chosen)
        found |= {f"{name}{suffix}": value for name, value in scores.items()}
        figures[f"confusion{suffix}"] = confusion
    best = max((name for name in FEATURES), key=lambda name: found[f"macro_f1_{name}"][0])
    figures["best_baseline"] = best
    found["best_baseline_macro_f1"] = found[f"macro_f1_{best}"]
    figures["matrix"], figures["diagonal_wins"], gains = cross(repairs)
    anew = [{**row, "right": row["rephrased"]} for row in repairs]
    figures["matrix_rephrased"], figures["diagonal_wins_rephrased"], again = cross(anew)
    found |= gains | {f"{name}_rephrased": value for name, value in again.items()}
    found |= _others(repairs) | masking(repairs)
    figures |= {name: value for name, (value, _) in found.items()}
    return figures, {name: list(bounds) for name, (_, bounds) in found.items()}


def macro_f1(planted: Sequence[str], given: Sequence[str], causes: Sequence[str] = CAUSES) -> float:
    """Mean over causes of F1; `unexplained`, and any other word, is a miss."""
    scores = []
    for cause in causes:
        hits = sum(a == b == cause for a, b in zip(planted, given, strict=True))
        total = sum(a == cause for a in planted) + sum(b == cause for b in given)
        scores.append(2 * hits / total if total else 0.0)
    return sum(scores) / len(scores)


def _unlearned(row: Mapping[str, Any]) -> bool:
    return row["group"] != "clean" and row["verdict"] == "unlearned"


def _unwritten(row: Mapping[str, Any]) -> bool:
    return row["group"] != "clean" and not row["written"]


def _prevalence(samples: Rows) -> Found:
    clean = [row for row in samples if row["group"] == "clean"]
    found: Found = {}
    for name, group, verdict in (
        ("prevalence", samples, "unlearned"), ("prevalence_partial", samples, "partial"),
        ("false_alarm_rate", clean, "unlearned"), ("false_alarm_rate_partial", clean, "partial"),
    ):  # fmt: skip
        count = sum(row["verdict"] == verdict for row in group)
        found[name] = (count / len(group), wilson(count, len(group)))
    return found


def _attribution(tried: Rows, samples: Rows, chosen: Any) -> tuple[Found, dict[str, dict[str, int]]]:
    """Macro-F1 of rules and baselines on the planted samples that fail, with intervals over resampled samples."""
    rows = [row for row in samples if chosen(row)]
    development = [{**row, "random": 0.0} for row in tried if chosen(row)]
    planted = [str(row["group"]) for row in rows]
    given = {"rules": [str(row["cause"]) for row in rows], "rules_other_order": [str(row["other"]) for row in rows]}
    given |= predictions(development, rows, seed=0)
    scores = {name: macro_f1(planted, causes) for name, causes in given.items()}
    draw = np.random.default_rng(0)
    resampled: dict[str, list[float]] = {name: [] for name in given}
    for _ in range(2000):
        places = draw.integers(0, len(rows), len(rows))
        again = [planted[place] for place in places]
        for name, causes in given.items():
            resampled[name].append(macro_f1(again, [causes[place] for place in places]))
    bounds = {name: tuple(np.quantile(values, [0.025, 0.975])) for name, values in resampled.items()}
    found: Found = {"macro_f1": (scores["rules"], bounds["rules"])}
    found |= {f"macro_f1_{name}": (scores[name], bounds[name]) for name in given if name != "rules"}
    best = max(FEATURES, key=lambda name: scores[name])
    gaps = np.subtract(resampled["rules"], resampled[best])
    found["macro_f1_minus_best_baseline"] = (scores["rules"] - scores[best], tuple(np.quantile(gaps, [0.025, 0.975])))
    confusion = {cause: dict(Counter(c for p, c in zip(planted, given["rules"], strict=True) if p == cause))
                 for cause in CAUSES}  # fmt: skip
    return found, confusion


def cross(repairs: Rows) -> tuple[dict[str, dict[str, float]], int, Found]:
    """Share of each cause's failed samples that a repair mends, over all seeds, and by how much the method's wins.

    Returns:
        intervention to cause to share, how many causes the method's own intervention mends better than every other and
        the control, and its leads over the control and over the best of the others, with intervals over samples.
    """
    each: dict[tuple[str, str], list[float]] = {}
    for row in sorted(repairs, key=lambda row: row["seed"]):
        for cause, right in row["right"].items():
            if row["target"] in ("", cause):
                each.setdefault((row["fix"], cause), []).extend(right)
    fixes = ("original", "control", *dict.fromkeys(FIXES.values()))
    table = {
        fix: {cause: float(np.mean(each[fix, cause])) for cause in CAUSES if each.get((fix, cause))} for fix in fixes
    }
    wins, gains, draw = 0, Found(), np.random.default_rng(0)
    for cause, fix in FIXES.items():
        others = {name: table[name].get(cause, 0.0) for name in fixes if name not in ("original", fix)}
        rival = max(others, key=lambda name: others[name])
        own = table[fix].get(cause, 0.0)
        wins += own > others[rival]
        for label, other in (("control", "control"), ("best_other", rival)):
            gaps = np.subtract(each[fix, cause], each[other, cause])
            means = gaps[draw.integers(0, len(gaps), (2000, len(gaps)))].mean(1)
            gains[f"repair_{cause}_minus_{label}"] = (float(gaps.mean()), tuple(np.quantile(means, [0.025, 0.975])))
    return table, wins, gains


def _others(repairs: Rows) -> Found:
    """What the method's interventions cost elsewhere: samples that had been learned, and the general set."""
    found: Found = {}
    seeds = sorted({row["seed"] for row in repairs})
    control = {row["seed"]: row for row in repairs if row["fix"] == "control"}
    for cause, fix in FIXES.items():
        own = {row["seed"]: row for row in repairs if row["fix"] == fix and row["target"] in ("", cause)}
        for what in ("retained", "general"):
            gaps = [own[seed][what] - control[seed][what] for seed in seeds if seed in own]
            found[f"{what}_{cause}_minus_control"] = interval(gaps)
    return found


def masking(repairs: Rows) -> Found:
    """What longer training hides: the average rises, and the same samples stay wrong.

    `masking_gain` is the rise of the share of failed and retained samples that are right, `masking_persistence` the
    share of those wrong before that still are, and `masking_overlap` the overlap (Jaccard) of the two sets of wrong
    samples.
    """
    gains, persist, overlap = [], [], []
    for seed in sorted({row["seed"] for row in repairs}):
        before, after = (
            next(row for row in repairs if row["seed"] == seed and row["fix"] == fix) for fix in ("original", "control")
        )
        first, second = set(before["wrong"]), set(after["wrong"])
        gains.append((len(first) - len(second)) / before["samples"])
        persist.append(len(first & second) / max(1, len(first)))
        overlap.append(len(first & second) / max(1, len(first | second)))
    return {
        "masking_gain": interval(gains),
        "masking_persistence": interval(persist),
        "masking_overlap": interval(overlap),
    }
