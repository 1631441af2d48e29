"""What a diagnosis leaves on disk: tables, figures, the flagged samples, and the comparison with an earlier one."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pyarrow as pa

from raylm.errors import UserError
from raylm.evaluation.stats import bootstrap, mcnemar_exact, wilson
from raylm.ilp.causes import UNEXPLAINED, Attribution, Signals, shares
from raylm.ilp.config import CAUSES, DiagnoseConfig
from raylm.ilp.log import Log
from raylm.ilp.measure import Diagnosis, Probed
from raylm.storage import Store
from raylm.train.repair import RepairPlan

_ARROW = {"str": pa.string(), "float": pa.float64(), "int": pa.int64(), "bool": pa.bool_()}
FLAGGED = "flagged"
"""File of the flagged samples, without its ending."""


class Before:
    """An earlier diagnosis of the same samples."""

    def __init__(self, path: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Read it.

        Raises:
            UserError: it is not a finished diagnosis, or shares no sample with these.
        """
        store = Store(path)
        manifest = store.manifest()
        if manifest is None or manifest.stage != "diagnose":
            raise UserError(f"before={path}: no finished diagnosis here")
        self.digest = manifest.digest()
        table = store.read_table("data/samples.parquet").select(["id", "verdict", "cause", "written"])
        self.rows = {row["id"]: row for row in table.to_pylist()}
        if not self.rows.keys() & {row["id"] for row in rows}:
            raise UserError(f"before={path}: it shares no sample with the ones given; compare diagnoses of one set")


def write_tables(store: Store, found: Diagnosis, log: Log | None) -> None:
    """samples.parquet: a row for each sample that was looked at; unlearned.parquet: those not learned, with signals.

    map.parquet: confidence and variability of each sample of the log, where there is one.
    """
    if log is not None:
        names = ("confidence", "variability", "looks_right", "alternation")
        points = [{"id": item.id, **{name: getattr(log.paths[item.id], name) for name in names}}
                  for item in found.items if item.id in log.paths]  # fmt: skip
        store.write_table("data/map.parquet", pa.Table.from_pylist(points))
    rows = []
    failed = []
    for item in found.items:
        probed, given = found.probed[item.id], found.causes.get(item.id)
        row = {**_plain(probed), "cause": given.cause if given else "", "check": item.check, "task": item.task}
        rows.append(row)
        if given:
            text = {"question": item.question, "answer": item.answer}
            failed.append(row | text | _attributed(given) | _plain(found.signals[item.id]))
    probes = [*_schema(Probed), *((name, pa.string()) for name in ("cause", "check", "task"))]
    store.write_table("data/samples.parquet", pa.Table.from_pylist(rows, pa.schema(probes)))
    signals = [each for each in _schema(Signals) if each[0] != "id"]
    words = [(name, pa.string()) for name in ("question", "answer", "other_cause")]
    words += [("confidence_of_cause", pa.float64())]
    words += [(name, pa.list_(pa.string())) for name in ("holds", "unknown")]
    store.write_table("data/unlearned.parquet", pa.Table.from_pylist(failed, pa.schema([*probes, *words, *signals])))


def export(store: Store, rows: Sequence[dict[str, Any]], flagged: set[str], source: str) -> str:
    """Write the flagged samples as they came, JSONL as JSONL and all else as Parquet; returns the file's name."""
    chosen = [{key: value for key, value in row.items() if key != "task_name"} for row in rows if row["id"] in flagged]
    if source.endswith((".jsonl", ".jsonl.gz", ".json")):
        write_lines(store, f"{FLAGGED}.jsonl", chosen)
        return f"{FLAGGED}.jsonl"
    store.write_table(f"{FLAGGED}.parquet", pa.Table.from_pylist(chosen))
    return f"{FLAGGED}.parquet"


def write_lines(store: Store, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSONL."""
    store.write_bytes(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def funnel(found: Diagnosis) -> dict[str, int]:
    """Counts from all samples to those that an intervention is known for."""
    named = [each for each in found.causes.values() if each.cause != UNEXPLAINED]
    return {
        "samples": len(found.everyone),
        "looked_at": len(found.items),
        "not_learned": len(found.causes),
        "with_a_cause": len(named),
    }


def figures(found: Diagnosis, log: Log | None, config: DiagnoseConfig, before: Before | None) -> dict[str, Any]:
    """The manifest's figures."""
    counts = Counter(each.verdict for each in found.probed.values())
    total = len(found.items)
    unlearned = {name: each for name, each in found.causes.items() if found.probed[name].verdict == "unlearned"}
    written = sum(each.written is False for each in found.probed.values())
    kept: dict[str, Any] = {
        "verdicts": {name: counts[name] for name in ("unlearned", "partial", "learned")},
        "prevalence": counts["unlearned"] / total,
        "prevalence_interval": wilson(counts["unlearned"], total),
        "wrong_when_writing": written / total,
        "wrong_when_writing_interval": wilson(written, total),
        "chance_floor": found.floor,
        "longest_is_right": found.longest,
        "unverifiable": sum(each.written is None for each in found.probed.values()),
        "not_improved": sum(each.improved is False for each in found.probed.values()),
        "loss_compared": sum(each.improved is not None for each in found.probed.values()),
        "shortcuts": sum(each.shortcut for each in found.probed.values()),
        "causes": shares(unlearned),
        "causes_other_order": shares(unlearned, other=True),
        "causes_with_partial": shares(found.causes),
        "order_agreement": _agreement(unlearned.values()),
        "not_assessable": {cause: sum(cause in each.unknown for each in found.causes.values()) for cause in CAUSES},
        "contradictions": sum(not pair.agrees for pair in found.pairs),
        "no_normal_form": sum(not item.normal for item in found.everyone),
    }
    if log is not None:
        kept["log"] = {"samples": len(log.paths), "steps": log.steps, "truncated": log.truncated}
    if before is not None:
        kept["comparison"] = compare(before, found, config)
    return kept


def doubts(found: Diagnosis) -> list[str]:
    """What makes the whole diagnosis doubtful."""
    said = []
    improved = _share_improved(found)
    if improved < 0.5:
        said.append(f"tuning lowered the loss of only {improved:.0%} of the samples: was the model trained on them?")
    if len(found.everyone) < 12:
        said.append(
            f"{len(found.everyone)} samples are fewer than neighbours are looked for: contradictions say little"
        )
    alone = sum(each.options < 2 for each in found.probed.values())
    if alone:
        said.append(f"{alone} samples have no other answer to choose from: P1 passes for them")
    return said


def _share_improved(found: Diagnosis) -> float:
    """Share of the samples whose loss tuning lowered; learned ones that were not compared are like those that were."""
    total = 0.0
    for learned in (True, False):
        group = [each.improved for each in found.probed.values() if (each.verdict == "learned") is learned]
        compared = [each for each in group if each is not None]
        total += len(group) * (sum(compared) / len(compared) if compared else 1.0)
    return total / max(1, len(found.probed))


def compare(before: Before, found: Diagnosis, config: DiagnoseConfig) -> dict[str, Any]:
    """What changed since an earlier diagnosis, for its flagged samples and for the rest."""
    shared = [item.id for item in found.items if item.id in before.rows]
    groups = {
        "flagged": [name for name in shared if before.rows[name]["verdict"] != "learned"],
        "rest": [name for name in shared if before.rows[name]["verdict"] == "learned"],
    }
    kept: dict[str, Any] = {"shared": len(shared)}
    for cause in (*CAUSES, UNEXPLAINED):
        groups[cause] = [name for name in groups["flagged"] if before.rows[name]["cause"] == cause]
    for group, names in groups.items():
        if not names:
            continue
        was = [before.rows[name]["written"] is not False for name in names]
        now = [found.probed[name].written is not False for name in names]
        gaps = [float(b) - float(a) for a, b in zip(was, now, strict=True)]
        kept[group] = {
            "samples": len(names),
            "right_before": sum(was) / len(names),
            "right_after": sum(now) / len(names),
            "difference": sum(gaps) / len(gaps),
            "interval": bootstrap(gaps, config.resamples, config.seed),
            "p_value": mcnemar_exact(gaps.count(1.0), gaps.count(-1.0)),
            "learned_after": sum(found.probed[name].verdict == "learned" for name in names),
        }
    bad = set(groups["flagged"])
    worse = {name for name in shared if found.probed[name].verdict != "learned"}
    kept["overlap_of_flagged"] = len(bad & worse) / max(1, len(bad | worse))
    return kept


def plan_counts(plan: RepairPlan, documents: int, unverified: int) -> dict[str, Any]:
    """The plan in numbers."""
    return {
        "drop": len(plan.drop),
        "separate": len(plan.separate),
        "upweight": len(plan.upweight),
        "shuffle": plan.shuffle,
        "replay": len(plan.replay.ids) if plan.replay else 0,
        "extra_epochs": plan.extra.epochs if plan.extra else 0.0,
        "documents": documents,
        "documents_unverified": unverified,
    }


def _agreement(given: Any) -> float:
    same = [each.cause == each.other for each in given]
    return float(np.mean(same)) if same else 1.0


def _attributed(given: Attribution) -> dict[str, Any]:
    return {
        "confidence_of_cause": given.confidence,
        "other_cause": given.other,
        "holds": list(given.holds),
        "unknown": list(given.unknown),
    }


def _plain(row: Any) -> dict[str, Any]:
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(row).items()}
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in found.items()}


def _schema(kind: type) -> list[tuple[str, pa.DataType]]:
    """Columns of a dataclass."""
    found: list[tuple[str, pa.DataType]] = []
    for each in fields(kind):
        name = str(each.type).replace(" | None", "")
        plain = pa.list_(pa.string()) if name.startswith("tuple") else _ARROW.get(name, pa.string())
        found.append((each.name, plain))
    return found
