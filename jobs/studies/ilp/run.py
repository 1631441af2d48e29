"""Does the diagnosis name planted causes, and does the repair of a cause mend its samples better than another?

    python -m jobs.studies.ilp.run [--develop 100 101] [--seeds 1 2 3] [--rows-only] [--threads N]
        [--out runs/studies/ilp]

Each seed is a world of facts, a base model that is pretrained on part of it, and samples with a planted reason to fail
(`world`). The base model is tuned on them and diagnosed; then it is tuned again with another seed, with each
intervention for each cause and with a control of equally many steps (`matrix`). Rules' thresholds are those of the
product, and were looked at on seeds of --develop alone, as the baselines' trees are grown on them. Finished seeds are
files rows-SEED.jsonl, and the same command goes on from them. Result: studies/results/ilp.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jobs import results
from jobs.studies.ilp import analysis, baselines, matrix, pretrain, trial
from jobs.studies.ilp.world import make
from raylm.ilp.config import CAUSES
from raylm.ilp.interventions import wrong_ones
from raylm.ilp.measure import Diagnosis


def main(develop: Sequence[int], seeds: Sequence[int], out: Path, rows_only: bool) -> None:
    """Make what is missing, and write the result unless other runs are still to come."""
    expert = trial.Diagnostician()
    tried = [row for seed in develop for row in rows_of(seed, out, expert, repairs=False)]
    rows = [row for seed in seeds for row in rows_of(seed, out, expert, repairs=True)]
    if rows_only:
        return
    figures, intervals = analysis.summarise(tried, rows)
    print(results.write("studies/results/ilp", figures, tried + rows, intervals=intervals, seeds=[*develop, *seeds]))


def rows_of(seed: int, out: Path, expert: trial.Diagnostician, repairs: bool) -> list[dict[str, Any]]:
    """All rows of a seed: a row a sample, and a row a repair."""
    file = out / f"rows-{seed}.jsonl"
    if file.exists():
        return [json.loads(line) for line in file.read_text().splitlines()]
    start, world, folder = time.monotonic(), make(seed), out / f"world-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    base = pretrain.base(world, folder)
    tuned = trial.tune(world, base, folder / "tuned", seed=seed)
    found = expert.diagnose(trial.settings(world, folder, seed), base, tuned, folder)
    quality = baselines.confident_learning(world, tuned.path)
    rows = [_sample(row, found, quality[row["id"]], tuned) for row in world.samples]
    print(f"seed {seed}: diagnosed after {time.monotonic() - start:.0f} s", file=sys.stderr)
    if repairs:
        missed = {row["id"] for row in rows if not row["written"]}
        failed = {cause: [row for row in world.samples if row["group"] == cause and row["id"] in missed]
                  for cause in CAUSES}  # fmt: skip
        rows += matrix.rows(world, base, folder, failed, wrong_ones(found, trial.settings(world, folder, seed).repair))
    rows = [{"seed": seed, **row} for row in rows]
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.rename(file)
    print(f"seed {seed}: {len(rows)} rows after {time.monotonic() - start:.0f} s", file=sys.stderr)
    return rows


def _sample(row: dict[str, Any], found: Diagnosis, quality: dict[str, float], tuned: trial.Tuned) -> dict[str, Any]:
    """What is kept of one sample."""
    name = trial.name_of(row)
    probed, path = found.probed[name], tuned.paths()[name]
    given = found.causes.get(name)
    return {
        "kind": "sample",
        "id": row["id"],
        "group": row["group"],
        "verdict": probed.verdict,
        "choice": probed.choice,
        "written": probed.written is not False,
        "cause": given.cause if given else "",
        "other": given.other if given else "",
        "sure": given.confidence if given else 0.0,
        "nll": probed.nll,
        "confidence": path.confidence,
        "variability": path.variability,
        **quality,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--develop", type=int, nargs="+", default=[100, 101], help="seeds that thresholds are seen on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="those that are reported")
    parser.add_argument("--rows-only", action="store_true", help="make the runs and write no result")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/ilp"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    main(options.develop, options.seeds, options.out, options.rows_only)
