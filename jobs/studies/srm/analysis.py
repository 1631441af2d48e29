"""Figures of the study, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.studies.epi.analysis import interval

REAL = ("summeval", "topical_chat_usr", "qa_feedback")
COMPARED = (
    *(("srm", other) for other in ("scalar", "scalar_wide", "shuffled", "filler", "logistic", "length", "text")),
    *(("text", other) for other in ("scalar", "text_shuffled", "text_filler")),
)
"""Pairs of arms, the first minus the second."""


def summarise(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Accuracies by set and arm, paired differences of the model of branches from every control, and attributions."""
    by = {(row["set"], row["arm"], row["seed"]): row for row in rows}
    seeds = {name: sorted({row["seed"] for row in rows if row["set"] == name}) for name in {row["set"] for row in rows}}
    found: dict[str, tuple[float, list[float]]] = {}
    for name, own in sorted(seeds.items()):
        suffix = "" if name == "planted" else f"_{name}"
        for arm in sorted({row["arm"] for row in rows if row["set"] == name}):
            values = [by[name, arm, seed]["pair_accuracy"] for seed in own if (name, arm, seed) in by]
            found[f"pair_accuracy_{arm}{suffix}"] = interval(values)
        for ours, other in COMPARED:
            both = [seed for seed in own if (name, ours, seed) in by and (name, other, seed) in by]
            gaps = [by[name, ours, s]["pair_accuracy"] - by[name, other, s]["pair_accuracy"] for s in both]
            if gaps:
                found[f"{ours}_minus_{other}{suffix}"] = interval(gaps)
        for key in ("attribution_top1", "attribution_chance"):
            values = [by[name, "srm", seed][key] for seed in own if key in by[name, "srm", seed]]
            if values:
                found[key + suffix] = interval(values)
        for arm in ("scalar", "srm"):
            for key in ("ece", "length_matched_accuracy", "hhh_accuracy"):
                values = [by[name, arm, seed][key] for seed in own if key in by[name, arm, seed]]
                if values:
                    found[f"{key}_{arm}{suffix}"] = interval(values)
        for dimension, agreed in by[name, "srm", own[0]].get("agreement", {}).items():
            for key in ("spearman", "kendall"):
                values = [by[name, "srm", seed]["agreement"][dimension][key] for seed in own]
                if agreed["texts"]:
                    found[f"{key}_{dimension}{suffix}"] = interval(values)
    figures: dict[str, Any] = {name: value for name, (value, _) in found.items()}
    figures |= {f"{key}_planted": value for key, value in diagonal(by, seeds.get("planted", [])).items()}
    return figures, {name: bounds for name, (_, bounds) in found.items()}


def diagonal(by: dict[tuple[str, str, int], dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Mean loss of accuracy by planted dimension when a branch is taken out, and how often its own loses most."""
    if not seeds:
        return {}
    dimensions = sorted(by["planted", "srm", seeds[0]]["by_dimension"])
    branch = {
        arm.removeprefix("without_").removeprefix("tool_"): arm
        for name, arm, _ in by
        if name == "planted" and arm.startswith("without_")
    }
    losses = {
        taken: {hurt: sum(_loss(by, branch[taken], hurt, seed) for seed in seeds) / len(seeds) for hurt in dimensions}
        for taken in dimensions
        if taken in branch
    }
    wins = sum(max(row, key=lambda hurt: row[hurt]) == taken for taken, row in losses.items())
    return {"removal_losses": losses, "diagonal_wins": wins, "diagonal_of": len(losses)}


def _loss(by: dict[tuple[str, str, int], dict[str, Any]], arm: str, dimension: str, seed: int) -> float:
    whole, less = by["planted", "srm", seed], by["planted", arm, seed]
    return whole["by_dimension"][dimension] - less["by_dimension"][dimension]
