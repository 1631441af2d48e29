"""Does the diagnosis name planted causes, and does the repair of a cause mend its samples better than another?

    python -m jobs.studies.ilp.run [--develop 100 101] [--seeds 1 2 3] [--passes N] [--rows-only] [--threads N]
        [--out runs/studies/ilp]

Each seed is a world of facts, a base model that is pretrained on part of it, and samples with a planted reason to fail
(`world`). The base model is tuned on them and diagnosed; then it is tuned again with another seed, with each
intervention for each cause and with a control of equally many steps (`matrix`); what that has mended is asked as the
samples ask it, and in other phrasings (figures named `_rephrased`). Rules' thresholds are those of the product, and
were looked at on seeds from 100 on alone, as the baselines' trees are grown on those of --develop. What is done is
lines of rows-SEED.jsonl, and the same command goes on from them. Result: studies/results/ilp.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jobs import results
from jobs.studies.ilp import analysis, baselines, matrix, pretrain, trial
from jobs.studies.ilp.world import World, make
from raylm.ilp import log
from raylm.ilp.config import CAUSES
from raylm.ilp.interventions import wrong_ones
from raylm.ilp.measure import Diagnosis


def main(develop: Sequence[int], seeds: Sequence[int], out: Path, *, passes: int, rows_only: bool) -> None:
    """Make what is missing, and write the result unless other runs are still to come."""
    expert = trial.Diagnostician()
    tried = [row for seed in develop for row in rows_of(seed, out, expert, passes=passes, repairs=False)]
    rows = [row for seed in seeds for row in rows_of(seed, out, expert, passes=passes, repairs=True)]
    if rows_only:
        return
    figures, intervals = analysis.summarise(tried, rows)
    figures["passes"] = passes
    print(results.write("studies/results/ilp", figures, tried + rows, intervals=intervals, seeds=[*develop, *seeds]))


def rows_of(seed: int, out: Path, expert: trial.Diagnostician, *, passes: int, repairs: bool) -> list[dict[str, Any]]:
    """All rows of a seed: a row a sample, and a row a repair; those that are in its file, and those made now."""
    out.mkdir(parents=True, exist_ok=True)
    file, world, folder = out / f"rows-{seed}.jsonl", make(seed), out / f"world-{seed}"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def keep(made: Sequence[dict[str, Any]]) -> None:
        rows.extend({"seed": seed, **row} for row in made)
        with file.open("a") as sink:
            sink.write("".join(json.dumps({"seed": seed, **row}) + "\n" for row in made))

    if not rows:
        keep(_diagnosed(world, folder, expert, passes))
        print(f"seed {seed}: diagnosed", file=sys.stderr)
    if repairs:
        samples = {row["id"]: row for row in rows if row["kind"] == "sample"}
        failed = {
            cause: [row for row in world.samples if row["group"] == cause and not samples[row["id"]]["written"]]
            for cause in CAUSES
        }
        wrong = {name: row.get("drop", "") for name, row in samples.items()}
        for row in matrix.rows(world, folder, failed, wrong, [row for row in rows if row["kind"] == "repair"]):
            keep([row])
            print(f"seed {seed}: {row['fix']} {row['target']}", file=sys.stderr)
    return rows


def _diagnosed(world: World, folder: Path, expert: trial.Diagnostician, passes: int) -> list[dict[str, Any]]:
    """The rows of all samples of a world, whose base model is made, tuned and diagnosed."""
    folder.mkdir(parents=True, exist_ok=True)
    base = pretrain.base(world, folder, passes)
    tuned = trial.tune(world, base, folder / "tuned", seed=world.seed)
    settings = trial.settings(world, folder, world.seed)
    found = expert.diagnose(settings, base, tuned, folder)
    quality = baselines.confident_learning(world, tuned.path)
    drop = wrong_ones(found, settings.repair)
    paths = tuned.paths()
    return [
        {
            **_sample(row, found, paths[trial.name_of(row)]),
            **quality[row["id"]],
            "drop": drop.get(trial.name_of(row), ""),
        }
        for row in world.samples
    ]


def _sample(row: dict[str, Any], found: Diagnosis, path: log.Path) -> dict[str, Any]:
    """What is kept of one sample."""
    name = trial.name_of(row)
    probed, given = found.probed[name], found.causes.get(name)
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
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--develop", type=int, nargs="+", default=[100, 101], help="seeds that thresholds are seen on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="those that are reported")
    parser.add_argument("--passes", type=int, default=pretrain.PASSES, help="of pretraining")
    parser.add_argument("--rows-only", action="store_true", help="make the runs and write no result")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/ilp"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    main(options.develop, options.seeds, options.out, passes=options.passes, rows_only=options.rows_only)
