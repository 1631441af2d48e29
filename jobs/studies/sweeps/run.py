"""Sweep isolation schedules, or strengths of soft labels, and confirm the best on seeds and data it was not chosen by.

    python -m jobs.studies.sweeps.run isolation|smoothing [--seeds 1 2 3 4 5] [--set KEY=VALUE ...]
        [--out runs/studies/sweeps]

isolation: a Llama of half a million parameters learns to reverse words and then to sort numbers, and is looked at for
what it forgets; searched by Optuna for little forgetting and much learning. smoothing: heads on a frozen all-MiniLM,
300 questions of trec_qc ($RAYLM_DATA); random search with early stops, for macro-F1 and nats on dev texts. The spaces
are those of jobs/configs/sweeps. An interrupted study goes on where it was. Results: studies/results/
sweep_isolation.json and sweep_smoothing.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from jobs import results
from jobs.studies.epi.analysis import interval
from jobs.studies.sweeps import isolation, smoothing
from raylm.config import load
from raylm.storage import Store
from raylm.sweep import run as sweeps
from raylm.sweep.config import SweepConfig
from raylm.sweep.space import nested

STUDIES = {"isolation": isolation, "smoothing": smoothing}
KEPT = ("trials", "finished", "stopped", "failed", "best", "hypervolume", "reference", "front", "importances")
"""Figures of the sweep that the result has too."""


def main(name: str, seeds: list[int], changes: list[str], out: Path) -> None:
    """Prepare, sweep, confirm, write; `changes` are of the sweep's config."""
    study, folder = STUDIES[name], (out / name).absolute()
    base = study.prepare(folder)
    arguments = [
        f"jobs/configs/sweeps/{name}.yaml",
        f"base={json.dumps(base)}",
        f"out={folder}/sweep",
    ]
    sweep = load(SweepConfig, [*arguments, *changes])
    manifest = sweeps.run(sweep)
    best = nested(manifest.figures["best"]["point"])
    rows = [row for seed in seeds for row in _confirmed(study, base, best, seed, folder)]
    figures, intervals = summarise(rows, study.MEASURES)
    figures = {key: manifest.figures[key] for key in KEPT} | figures
    store = Store(sweep.out)
    raw = [{"kind": "trial", **_plain(row)} for row in store.read_table("data/trials.parquet").to_pylist()]
    raw += [{"kind": "confirmation", **row} for row in rows]
    figures["trial_seconds"] = store.read_json("timing.json")["trial_seconds"]
    print(results.write(f"studies/results/sweep_{name}", figures, raw, intervals=intervals, seeds=[0, *seeds]))


def summarise(rows: list[dict[str, Any]], measures: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Means of the arms over seeds, and how far the best trial is from the others, in pairs of the same seed."""
    found = {}
    by = {(row["arm"], row["seed"]): row for row in rows}
    arms, seeds = (list(dict.fromkeys(row[key] for row in rows)) for key in ("arm", "seed"))
    for measure in measures:
        for arm in arms:
            values = [by[arm, seed][measure] for seed in seeds]
            found[f"{measure}_{arm}"] = interval(values)
            if arm != "best":
                gaps = [by["best", seed][measure] - by[arm, seed][measure] for seed in seeds]
                found[f"{measure}_best_minus_{arm}"] = interval(gaps)
    return {name: value for name, (value, _) in found.items()}, {name: bounds for name, (_, bounds) in found.items()}


def _confirmed(study: Any, base: dict[str, Any], best: dict[str, Any], seed: int, folder: Path) -> Any:
    """Rows of a seed, from its file or made now."""
    file = folder / f"rows-{seed}.jsonl"
    if not file.exists():
        rows = study.confirm(base, best, seed, folder)
        print(*rows, sep="\n", file=sys.stderr)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [json.loads(line) for line in file.read_text().splitlines()]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    kept = {key: row[key] for key in ("number", "state", "percent", "seconds", "on_front")}
    return kept | {key: json.loads(row[key]) for key in ("point", "measures")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="on which the best is confirmed")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the sweep's config")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/sweeps"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(options.study, options.seeds, options.set, options.out)
