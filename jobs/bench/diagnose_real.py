"""What does a diagnosis of SmolLM2-135M cost, beside an epoch of the training that it examines?

    python -m jobs.bench.diagnose_real [--samples N] [--epochs N] [--screen N] [--repeats N] [--screens N] [--threads N]
        [--out DIR]

Questions of bank customers with their intents, as in jobs/studies/ilp/real (read from $RAYLM_DATA). The model is tuned
once and kept in --out. Then each repeat times some steps of that training, a diagnosis with all probes, the steps
again, and so on with sampled screens of draws of their own: in this process and on the same threads, the starts of
scorers and engines and the encoding of questions included. An epoch is its number of steps at the mean of the steps
around.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from jobs import results
from jobs.studies.epi import real
from raylm.config import build
from raylm.ilp import items, log, measure, stage
from raylm.ilp.config import DiagnoseConfig
from raylm.llm import models
from raylm.storage import Store
from raylm.train.config import FinetuneConfig
from raylm.train.run import Run

MODEL, BATCH, TIMED = "smollm2-135m-instruct", 16, 6


def main(options: argparse.Namespace) -> None:
    """Tune if that is not done, measure, and write bench/results/diagnose_real.json."""
    torch.set_num_threads(options.threads)
    out = options.out.absolute()
    chains = real.write(out, "intents", 0, (options.samples, 1))["train"]
    training = _training(chains, options.epochs)
    seen = _tune(training, out)
    timed = Run(training, str(models.resolve(MODEL).path), out / "timed", (0, 1))
    steps = -(-options.samples // BATCH)
    rows = []
    before = _step_seconds(timed)
    for repeat in range(options.repeats):
        for draw in range(-1, options.screens):
            kind, seed = ("full", repeat) if draw < 0 else ("screen", repeat * options.screens + draw)
            found = _diagnose(options, out, seen, 0 if draw < 0 else options.screen, seed)
            after = _step_seconds(timed)
            row: dict[str, Any] = {"repeat": repeat, "kind": kind, "seed": seed, **found}
            rows.append(row | {"epoch_seconds": steps * (before + after) / 2})
            print(rows[-1], flush=True)
            before = after
    full, screens = ([row for row in rows if row["kind"] == kind] for kind in ("full", "screen"))
    ratios = {
        "full_vs_epoch": [row["seconds"] / row["epoch_seconds"] for row in full],
        "screen_vs_epoch": [row["seconds"] / row["epoch_seconds"] for row in screens],
        "samples_per_second": [options.samples / row["seconds"] for row in full],
        "training_samples_per_second": [options.samples / row["epoch_seconds"] for row in full],
    }
    figures, intervals = results.geometric_means(ratios)
    figures |= {"samples": options.samples, "screened": options.screen, "epochs": options.epochs}
    figures["not_learned"] = full[0]["not_learned"] / options.samples
    print(
        results.write("bench/results/diagnose_real", figures, rows, intervals=intervals, seeds=range(options.repeats))
    )


def _training(chains: str, epochs: int) -> FinetuneConfig:
    return build(FinetuneConfig, {
        "model": MODEL, "chains": chains, "engine": "torch", "workers": 1, "epochs": epochs, "batch_size": BATCH,
        "micro_batch": BATCH, "lr": 2e-4, "max_length": 256, "checkpoint_every": 1_000_000,
        "isolation": {"enabled": False},
    })  # fmt: skip


def _tune(training: FinetuneConfig, out: Path) -> list[list[Any]]:
    """The log of samples, of a training that is done once."""
    kept = out / "seen.json"
    if not kept.exists():
        torch.manual_seed(training.seed)
        run = Run(training, str(models.resolve(MODEL).path), out, (0, 1))
        run.train(lambda row: print(row, flush=True), lambda step, state: None)
        kept.write_text(json.dumps(run.finish()["seen"]))
    return json.loads(kept.read_text())


def _step_seconds(run: Run) -> float:
    """Mean of some steps."""
    run.trainer.step(0)  # memory that the diagnosis took is asked for again
    start = time.monotonic()
    for step in range(1, 1 + TIMED):
        run.trainer.step(step)
    return (time.monotonic() - start) / TIMED


def _diagnose(options: argparse.Namespace, out: Path, seen: list[list[Any]], count: int, seed: int) -> dict[str, Any]:
    """Seconds, those of each question, and what was found."""
    spent: dict[str, float] = {}
    plain = measure.here(Store(str(out / "asked")))

    def ask(label: str, *given: Any) -> list[dict[str, Any]]:
        start = time.monotonic()
        rows = plain(label, *given)
        spent[label] = time.monotonic() - start
        return rows

    start = time.monotonic()
    config = build(DiagnoseConfig, {
        "chains": str(out / "intents-0-train.jsonl"), "base": MODEL, "probe": {"max_tokens": 16}, "max_length": 256,
        "engine": {"kind": "transformers", "context": 256, "max_in_flight": 64}, "unit": 256, "seed": seed,
        "compute": {"cpus": options.threads},
    })  # fmt: skip
    everyone = items.make(items.read(config)[0], config.probe)
    sources = measure.Sources(
        ask=ask, tuned=str(out / "model"), base=str(models.resolve(MODEL).path),
        encode=stage.encoder(config.encoder),
        log=log.of_rows([dict(zip(log.COLUMNS, row, strict=True)) for row in seen], seen[-1][0]),
    )  # fmt: skip
    found = measure.diagnose(everyone, items.screen(everyone, count, seed), config, sources)
    failed = len(found.causes)
    return {"seconds": time.monotonic() - start, "not_learned": failed, "seconds_by_question": spent}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=2, help="of the training")
    parser.add_argument("--screen", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--screens", type=int, default=3, help="a repeat")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/bench/diagnose_real"))
    main(parser.parse_args())
