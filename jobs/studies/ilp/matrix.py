"""Every intervention on every cause's samples, all with the same number of further steps."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.studies.ilp import trial
from jobs.studies.ilp.world import TOLD, World, write_rows
from raylm.ilp.config import CAUSES
from raylm.train.repair import DocumentPlan, RepairPlan

FIXES = {
    "inconsistency": "drop",
    "prerequisite": "documents",
    "conflict": "documents_upweight",
    "forgotten": "shuffle",
    "underfit": "upweight",
}
"""Cause to the intervention that the method names for it."""
EXTRA = 30
"""Optimizer steps beyond the original recipe's, for every intervention and the control."""
SHARE = 0.5
"""Of documents in their stage; the rest is the samples as text."""
EVALUATION = 1000
"""Added to a seed for repairs: samples are selected on one order of training and looked at on another."""
Row = dict[str, Any]


def rows(
    world: World, folder: Path, failed: dict[str, list[Row]], wrong: dict[str, str], done: Sequence[Row]
) -> Iterator[Row]:
    """Accuracy of each cause's failed samples, of the others and of the general set, by intervention.

    Args:
        world: the samples; its base model lies in `folder`.
        folder: for runs.
        failed: samples that were not learned, by planted cause.
        wrong: sample that the diagnosis would drop, for each sample of a contradiction, else empty.
        done: rows that are there already; the others are made.
    """
    had = {(row["fix"], row["target"]): row for row in done}
    seed, base, place = world.seed + EVALUATION, folder / "base", folder / "run"
    if ("original", "") not in had:
        had["original", ""] = _measured(world, trial.tune(world, base, place, seed=seed), "original", "", failed)
        yield had["original", ""]
    steps = had["original", ""]["steps"] + EXTRA
    longer = trial.REST + EXTRA * trial.SETTINGS["batch_size"] / sum(r["group"] != "forgotten" for r in world.samples)
    wanted = [("control", ""), ("shuffle", "")]
    wanted += [(fix, cause) for cause in CAUSES for fix in ("drop", "documents", "documents_upweight", "upweight")]
    for fix, cause in wanted:
        if (fix, cause) in had or (cause and not failed[cause]):
            continue
        plan = _plan(world, folder, fix, failed[cause], wrong) if cause else RepairPlan(shuffle=fix == "shuffle")
        rest = trial.REST + 1 if fix in ("documents", "documents_upweight", "upweight") else longer + 2
        tuned = trial.tune(world, base, place, seed=seed, plan=plan, rest=rest, max_steps=steps)
        yield _measured(world, tuned, fix, cause, failed)
    shutil.rmtree(place, ignore_errors=True)


def _plan(world: World, folder: Path, fix: str, targets: Sequence[Row], wrong: dict[str, str]) -> RepairPlan:
    """The plan of one intervention on some samples; each costs EXTRA steps."""
    names = [trial.name_of(row) for row in targets]
    if fix == "drop":
        return RepairPlan(drop=tuple(sorted({wrong[row["id"]] or trial.name_of(row) for row in targets})))
    steps = EXTRA // 2 if fix == "documents_upweight" else EXTRA
    documents = None
    if fix != "upweight":
        texts = [form.format(r=row["relation"], e=row["entity"], v=row["answer"]) for row in targets for form in TOLD]
        path = write_rows(folder / "documents.jsonl", [{"text": text} for text in texts])
        passes = steps * trial.SETTINGS["batch_size"] * SHARE / len(texts)
        documents = DocumentPlan(path=path, share=SHARE, epochs=passes)
    weights = {}
    if fix != "documents":
        passes = trial.FIRST if targets[0]["group"] == "forgotten" else trial.REST
        weight = 1 + steps * trial.SETTINGS["batch_size"] / (passes * len(targets))
        weights = dict.fromkeys(names, round(weight, 2))
    return RepairPlan(documents=documents, upweight=weights)


def _measured(world: World, tuned: trial.Tuned, fix: str, target: str, failed: dict[str, list[Row]]) -> Row:
    """What a run gets right: failed samples by cause, the samples that were learned, and the general set."""
    right = trial.look(tuned.path, world.samples)
    targets = [row for group in failed.values() for row in group]
    chosen = {row["id"] for row in targets}
    general = trial.look(tuned.path, world.general)
    anew = trial.rephrased(tuned.path, targets)
    return {
        "kind": "repair",
        "fix": fix,
        "target": target,
        "steps": tuned.steps,
        "right": {cause: [int(right[row["id"]]) for row in group] for cause, group in failed.items()},
        "rephrased": {cause: [anew[row["id"]] for row in group] for cause, group in failed.items()},
        "retained": _share([right[row["id"]] for row in world.samples if row["id"] not in chosen]),
        "general": _share(list(general.values())),
        "samples": len(world.samples),
        "wrong": sorted(row["id"] for row in world.samples if not right[row["id"]]),
    }


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else math.nan
