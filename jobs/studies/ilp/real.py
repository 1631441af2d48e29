"""On people's questions: what does SmolLM2-135M fail to learn, why, and does the plan mend more than further steps do?

    python -m jobs.studies.ilp.real [--seeds 0 1] [--samples 96] [--epochs 3] [--out runs/studies/ilp_real]

Questions of bank customers with the names of their intents (banking77, read from $RAYLM_DATA). Each seed draws its own;
the stages themselves tune the model, diagnose it, and tune it again under another seed: with the plan, and without it
for as many steps (control). Both are diagnosed again. Samples that the first diagnosis calls unlearned or partial are
`failed`; what mends is counted among them, what is lost among the others, and both together in `all`; `held` are
questions that were in no training. Finished stages are not run again. Result: studies/results/ilp_real.json.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import results
from jobs.studies.epi import real
from jobs.studies.ilp import trial
from raylm.config import build
from raylm.evaluation.stats import bootstrap, wilson
from raylm.ilp import stage as diagnosis
from raylm.ilp.config import CAUSES, DiagnoseConfig
from raylm.storage import Store
from raylm.train import sft
from raylm.train.config import FinetuneConfig

MODEL, BATCH, HELD = "smollm2-135m-instruct", 16, 100
LONGER = 1.5
"""Steps of a second training, in those of the first."""
AGAIN = 1000
"""Added to a seed for second trainings, so that samples are not selected and looked at on one run."""
ARMS = ("control", "plan")
Row = dict[str, Any]


def main(seeds: Sequence[int], out: Path, *, samples: int, epochs: int) -> None:
    """Make what is missing, and write the result."""
    rows = [row for seed in seeds for row in _seed(seed, out.absolute() / str(seed), samples=samples, epochs=epochs)]
    figures, intervals = summarise(rows)
    print(results.write("studies/results/ilp_real", figures, rows, intervals=intervals, seeds=seeds))


def _seed(seed: int, out: Path, *, samples: int, epochs: int) -> list[Row]:
    """A row a sample, and a row a question that was held out: what each run makes of it."""
    files = real.write(out, "intents", seed, (samples, HELD))
    steps = -(-samples // BATCH) * epochs
    first = _tuned(files["train"], out / "first", seed, steps)
    found = {"first": _diagnosed(files["train"], first, out / "first-diagnosis", "")}
    plan = str(out / "first-diagnosis" / "plan.json")
    asked = _questions(files["held"])
    held = {"first": trial.look(first / "model", asked)}
    for arm in ARMS:
        given = {"plan": plan} if arm == "plan" else {}
        run = _tuned(files["train"], out / arm, seed + AGAIN, round(LONGER * steps), **given)
        found[arm] = _diagnosed(files["train"], run, out / f"{arm}-diagnosis", str(out / "first-diagnosis"))
        held[arm] = trial.look(run / "model", asked)
    rows = [
        {
            "seed": seed, "kind": "sample", "id": name, "cause": found["first"][name]["cause"],
            **{f"verdict_{arm}": each[name]["verdict"] for arm, each in found.items()},
            **{f"right_{arm}": each[name]["written"] is not False for arm, each in found.items()},
        }
        for name in found["first"]
    ]  # fmt: skip
    return rows + [
        {"seed": seed, "kind": "held", "id": name, **{f"right_{arm}": each[name] for arm, each in held.items()}}
        for name in held["first"]
    ]


def _tuned(chains: str, out: Path, seed: int, steps: int, **given: Any) -> Path:
    """The stage's directory after a training of so many steps."""
    sft.run(build(FinetuneConfig, {
        "model": MODEL, "chains": chains, "out": str(out), "seed": seed, "max_steps": steps, "epochs": 100,
        "batch_size": BATCH, "micro_batch": 4, "lr": 1e-4, "max_length": 256, "checkpoint_every": 1000,
        "workers": 1, "cpus_per_worker": os.cpu_count(), "isolation": {"enabled": False}, **given,
    }))  # fmt: skip
    return out


def _diagnosed(chains: str, run: Path, out: Path, before: str) -> dict[str, Row]:
    """The samples of a diagnosis, by id."""
    diagnosis.run(build(DiagnoseConfig, {
        "model": str(run / "model"), "base": MODEL, "chains": chains, "log": str(run), "out": str(out),
        "before": before, "probe": {"max_tokens": 16}, "max_length": 256,
        "engine": {"kind": "transformers", "context": 256},
    }))  # fmt: skip
    return {row["id"]: row for row in Store(str(out)).read_table("data/samples.parquet").to_pylist()}


def _questions(file: str) -> list[Row]:
    """The chats of a file as rows for `trial.look`."""
    chats = [json.loads(line) for line in Path(file).read_text().splitlines()]
    return [
        {"id": row["id"], "question": row["messages"][0]["content"], "answer": row["messages"][1]["content"]}
        for row in chats
    ]


def summarise(rows: Sequence[Row]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Prevalence, causes, and what the plan changes beside the control, paired by sample over all seeds."""
    samples = [row for row in rows if row["kind"] == "sample"]
    held = [row for row in rows if row["kind"] == "held"]
    failed = [row for row in samples if row["verdict_first"] != "learned"]
    figures: dict[str, Any] = {"samples": len(samples), "failed": len(failed)}
    intervals: dict[str, list[float]] = {}
    for name in ("unlearned", "partial"):
        count = sum(row["verdict_first"] == name for row in samples)
        figures[f"prevalence_{name}"], intervals[f"prevalence_{name}"] = _share(count, len(samples))
    causes = Counter(row["cause"] for row in failed)
    figures |= {f"cause_{name}": causes[name] for name in (*CAUSES, "unexplained")}
    learned = [row for row in samples if row["verdict_first"] == "learned"]
    for label, part in (("mended", failed), ("kept", learned), ("all", samples), ("held", held)):
        for arm in ("first", *ARMS):
            right = sum(row[f"right_{arm}"] for row in part)
            figures[f"{label}_{arm}"], intervals[f"{label}_{arm}"] = _share(right, len(part))
        gaps = [float(row["right_plan"]) - float(row["right_control"]) for row in part]
        name = f"{label}_plan_minus_control"
        figures[name], intervals[name] = sum(gaps) / len(gaps), list(bootstrap(gaps, 10_000, 0))
    return figures, intervals


def _share(count: int, total: int) -> tuple[float, list[float]]:
    return count / total, list(wilson(count, total))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=3, help="of the first training")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/ilp_real"))
    options = parser.parse_args()
    main(options.seeds, options.out, samples=options.samples, epochs=options.epochs)
