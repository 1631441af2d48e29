"""The diagnose-reward stage: where a reward model errs, and which dimension is at fault."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raylm.errors import UserError
from raylm.rows import read_rows
from raylm.srm import calibration, diagnosis
from raylm.srm.config import BranchConfig, DiagnoseConfig
from raylm.srm.data import Table
from raylm.srm.scoring import score_all
from raylm.storage import Manifest, StageRun

SWAPS = 200
"""Pairs of the swap test: each scored again with its sides and its company swapped, and under another prompt."""


def run(config: DiagnoseConfig) -> Manifest:
    """Diagnose a reward model; a second call with the same model and data returns at once.

    Raises:
        UserError: a row is malformed, there is no reward model, or a column names no branch.
    """
    from raylm import report
    from raylm.llm import models
    from raylm.srm.model import read_settings

    if not config.model or not config.pairs:
        raise UserError("diagnose-reward needs model=, a reward model's directory, and pairs=, preference pairs")
    settings = read_settings(Path(config.model))
    names = tuple(item["name"] for item in settings["branches"])
    columns = _columns(config, settings)
    table, digest, pairs, rated, ratings = _read(config, columns)
    reference = models.resolve_encoder(config.model).ref
    stage = StageRun("diagnosis", config, config.out, {"data": digest, "model": reference.revision})
    if stage.finished is None:
        swapped, mates = swap_texts(table, pairs)
        again = pairs[:SWAPS].flatten()[::-1]  # the rejected response of each pair first, and in other company
        texts = [*table.texts, *swapped, *(table.texts[place] for place in again)]
        scores, seconds = score_all(
            os.path.abspath(config.model), texts, stage.store, config.compute,
            own_tools=config.own_tools, label="diagnose-reward",
        )  # fmt: skip
        scored = _scored(names, table, scores.slice(0, len(table.texts)))
        other = np.array(scores.column("score").to_pylist()[len(table.texts) :])
        mirrored = float(np.abs(other[len(swapped) :] - scored.scores[again]).max(initial=0.0))
        agreed = {
            name: diagnosis.agreement(scored.values[rated, names.index(name)], ratings[:, place])
            for place, name in enumerate(columns)
        }
        swap = {"mirrored": mirrored, **own_prompt(scored, mates, other[: len(swapped)])}
        figures = diagnosis.measure(scored, pairs) | {"agreement": agreed, "swap": swap}
        model = {"name": settings["name"], "revision": reference.revision}
        facts = {"figures": diagnosis.known(figures), "model": model, "timing": {"seconds": seconds}}
        _finish(stage, scored, pairs, config.examples, **facts)
    report.for_stage("diagnosis", stage.store)
    assert stage.finished is not None
    return stage.finished


def swap_texts(table: Table, pairs: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """Chosen responses under other pairs' prompts, and the places of those responses' own texts."""
    chosen = pairs[:SWAPS, 0]
    texts, places = [], []
    for number, place in enumerate(chosen):
        others = [other for other in np.roll(chosen, -number - 1) if table.groups[other] != table.groups[place]]
        if others:
            texts.append((table.texts[others[0]][0], table.texts[place][1]))
            places.append(place)
    return texts, np.array(places, dtype=np.int64)


def own_prompt(scored: diagnosis.Scored, mates: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Whether the prompt matters: how often a chosen response scores higher under its own prompt than another's.

    Args:
        mates: places of the chosen responses under their own prompts.
        other: their scores under other prompts.
    """
    wins = diagnosis.accuracy(scored.scores[mates] - other) if len(mates) else float("nan")
    return {"texts": len(mates), "own_prompt_wins": wins}


def _columns(config: DiagnoseConfig, settings: Mapping[str, Any]) -> dict[str, str]:
    names = [item["name"] for item in settings["branches"]]
    unknown = sorted(set(config.columns) - set(names))
    if unknown:
        raise UserError(f"columns: {unknown[0]!r} is no branch; there are {', '.join(names)}")
    if not config.ratings:
        return {}
    return {item["name"]: item["column"] for item in settings["branches"] if item["column"]} | config.columns


def _read(config: DiagnoseConfig, columns: Mapping[str, str]) -> tuple[Table, str, np.ndarray, np.ndarray, np.ndarray]:
    table = Table([BranchConfig(name=name, column=column) for name, column in columns.items()])
    found, digest = read_rows("pairs", config.pairs)
    pairs, _ = table.pairs(found)
    rated, ratings = np.zeros(0, dtype=np.int64), np.zeros((0, len(columns)))
    if config.ratings:
        found, more = read_rows("ratings", config.ratings)
        rated, ratings = table.ratings(found)
        digest = hashlib.sha256((digest + more).encode()).hexdigest()
    return table, digest[:16], pairs, rated, ratings


def _scored(names: tuple[str, ...], table: Table, scores: pa.Table) -> diagnosis.Scored:
    def columns(kind: str) -> np.ndarray:
        return np.array([scores.column(f"{kind}_{name}").to_pylist() for name in names], dtype=float).T

    return diagnosis.Scored(
        names, table.texts, np.array(scores.column("score").to_pylist()), columns("dimension"), columns("attribution")
    )


def _finish(
    stage: StageRun, scored: diagnosis.Scored, pairs: np.ndarray, examples: int, **facts: Any
) -> None:  # fmt: skip
    store = stage.store
    differences = scored.scores[pairs[:, 0]] - scored.scores[pairs[:, 1]]
    store.write_table("data/pairs.parquet", pa.Table.from_pylist(diagnosis.rows(scored, pairs)))
    store.write_table("data/calibration.parquet", pa.Table.from_pylist(calibration.curve(differences)))
    store.write_json("data/bad_cases.json", diagnosis.bad_cases(scored, pairs, examples))
    stage.finish(len(pairs), **facts)
