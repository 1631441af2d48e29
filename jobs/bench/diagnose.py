"""What does a diagnosis cost, beside the training that it examines?

    python -m jobs.bench.diagnose [--samples N] [--screen N] [--repeats N] [--threads N]

The world of the study (jobs/studies/ilp) is made and tuned; then the full probes run, and those of a sampled screen, in
this process and on the same threads, engines' starts included. Times are set beside one epoch of that training.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from jobs import results
from jobs.studies.ilp import pretrain, trial
from jobs.studies.ilp.world import Sizes, World, make
from raylm.ilp import items, log, measure
from raylm.storage import Store


def main(options: argparse.Namespace) -> None:
    """Measure, and write bench/results/diagnose.json."""
    expert = trial.Diagnostician()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        world = make(0, Sizes(known=options.samples // 4, clean=options.samples // 8, group=options.samples // 8))
        base = pretrain.base(world, folder)
        rows = []
        for repeat in range(options.repeats):
            start = time.monotonic()
            tuned = trial.tune(world, base, folder / "tuned", seed=repeat)
            trained = time.monotonic() - start
            passes = len(tuned.seen) / len(world.samples)
            row: dict[str, Any] = {"repeat": repeat, "epoch_seconds": trained / passes, "samples": len(world.samples)}
            for name, count in (("full", 0), ("screen", options.screen)):
                row[f"{name}_seconds"] = _seconds(expert, world, folder, tuned=tuned, count=count)
            rows.append(row)
    ratios = {
        "full_vs_epoch": [row["full_seconds"] / row["epoch_seconds"] for row in rows],
        "screen_vs_epoch": [row["screen_seconds"] / row["epoch_seconds"] for row in rows],
        "samples_per_second": [row["samples"] / row["full_seconds"] for row in rows],
        "training_samples_per_second": [row["samples"] / row["epoch_seconds"] for row in rows],
    }
    figures, intervals = results.geometric_means(ratios)
    figures |= {"samples": rows[0]["samples"], "screened": options.screen}
    print(results.write("bench/results/diagnose", figures, rows, intervals=intervals, seeds=range(options.repeats)))


def _seconds(expert: trial.Diagnostician, world: World, folder: Path, *, tuned: trial.Tuned, count: int) -> float:
    """Of one diagnosis; questions are encoded anew."""
    expert.known.clear()
    start = time.monotonic()
    config = trial.settings(world, folder, 0)
    everyone = items.make(items.read(config)[0], config.probe)
    seen = [dict(zip(log.COLUMNS, row, strict=True)) for row in tuned.seen]
    sources = measure.Sources(
        ask=measure.here(Store(str(folder / "asked"))), tuned=str(tuned.path), base=str(folder / "base"),
        encode=expert.encode, log=log.of_rows(seen, tuned.steps),
    )  # fmt: skip
    measure.diagnose(everyone, items.screen(everyone, count, 0), config, sources)
    return time.monotonic() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=400, help="about so many")
    parser.add_argument("--screen", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    main(chosen)
