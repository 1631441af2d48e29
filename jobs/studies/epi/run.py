"""Does evolving isolation move the front of forgetting against plasticity?

    python -m jobs.studies.epi.run [--seeds 0 1 2] [--arms NAME ...] [--rows-only] [--threads N]
        [--out runs/studies/epi]

A Llama of half a million parameters is pretrained on sums, and then tuned on four unlike tasks, one after the other, in
two orders, or mixed. Every few steps it is looked at what it gets right of all five. All arms of a seed share model,
data, batches and number of steps; learning rates of full fine-tuning are the front that isolation has to pass. Finished
runs are lines of rows-SEED.jsonl, and the same command goes on from them. The result is studies/results/epi.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jobs import results
from jobs.studies.epi import analysis
from jobs.studies.epi.arms import ARMS, FEW
from jobs.studies.epi.tasks import BEFORE, ORDERS, TASKS, write
from raylm.config import build
from raylm.llm import micro, models
from raylm.train.config import FinetuneConfig
from raylm.train.run import Run

SIZES = (3_500, 1_500, 150)
"""Chats of a task for pretraining, tuning and looking."""
EPOCHS = 6
"""Of pretraining, on all tasks."""
FRONT = ("full", "lr_0.5", "lr_0.25", "lr_0.1")
SETTINGS: dict[str, Any] = {
    "engine": "torch", "workers": 1, "batch_size": 16, "micro_batch": 16, "epochs": 2, "lr": 1e-3, "weight_decay": 0.01,
    "warmup_share": 0.05, "max_length": 96, "checkpoint_every": 1_000_000, "watch": {"every": 0.05},
}  # fmt: skip


def main(seeds: Sequence[int], arms: Sequence[str], out: Path, rows_only: bool) -> None:
    """Make what is missing, and write the result unless other runs are still to come."""
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        out.mkdir(parents=True, exist_ok=True)
        file = out / f"rows-{seed}.jsonl"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        done = {(row["arm"], *row["order"]) for row in found}
        for row in _seed(seed, arms, out, done):
            found.append(row)
            with file.open("a") as sink:
                sink.write(json.dumps(row) + "\n")
        rows += found
    if rows_only:
        return
    figures, intervals = summarise(rows)
    print(results.write("studies/results/epi", figures, rows, intervals=intervals, seeds=seeds))


def _seed(seed: int, arms: Sequence[str], out: Path, done: set[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """All runs of one seed that are not done."""
    base = _base(out, seed)
    for arm in arms:
        for order in (*ORDERS, *([("mixed",)] if arm in FEW else [])):
            if (arm, *order) in done:
                continue
            start = time.monotonic()
            row = one(base, out, seed, arm, order)
            said = {name: round(measure(row), 3) for name, measure in analysis.MEASURES.items()}
            print(f"seed {seed} {arm} {' '.join(order)} ({time.monotonic() - start:.0f} s): {said}", file=sys.stderr)
            yield row


def one(base: Path, out: Path, seed: int, arm: str, order: Sequence[str]) -> dict[str, Any]:
    """The row of one run."""
    mixed = tuple(order) == ("mixed",)
    names = ORDERS[0] if mixed else order
    changes = dict(ARMS[arm])
    lr = SETTINGS["lr"] * changes.pop("lr_factor", 1.0)
    isolation = dict(changes.get("isolation", {}))
    if isolation.get("source") == "file":
        isolation["mask_file"] = str(_probe(base, out, seed, isolation["protect"]))
        changes["isolation"] = isolation
    scoped = isolation.get("scope") == "per_task"
    how = ("by_task" if scoped else "mixed") if mixed else "sequential"
    run = _run(base, out / f"run-{seed}", seed, names, {**changes, "lr": lr, "order": how})
    looks: dict[str, dict[int, float]] = {}
    for row in run.watch.rows:
        looks.setdefault(row["set"], {})[row["step"]] = row["exact"]
    ends = {name: len(run.rows) for name in names}
    if not mixed:
        ends = {run.plan.task_at(step): step + 1 for step in range(run.plan.steps)}
    kept = run.engine.optimizer.isolation
    masks = [{key: mask[key] for key in mask if key != "layers"} for mask in kept.log] if kept is not None else []
    return {"seed": seed, "arm": arm, "order": list(order), "looks": looks, "ends": ends, "masks": masks}


def _run(
    base: Path, root: Path, seed: int, names: Sequence[str], changes: dict[str, Any], *, part: str = "train"
) -> Run:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    files = {name: write(root.parent / "data", name, seed, SIZES) for name in TASKS}
    tasks = [{"name": name, "chains": files[name][part], "eval_chains": files[name]["held"]} for name in names]
    watch = {**SETTINGS["watch"], **({"chains": files[BEFORE]["held"]} if BEFORE not in names else {})}
    torch.manual_seed(seed)
    run = Run(build(FinetuneConfig, {**SETTINGS, "seed": seed, "tasks": tasks, **changes, "watch": watch}),
              str(base), root, (0, 1))  # fmt: skip
    run.train(lambda row: None, lambda step, state: None)
    return run


def _probe(base: Path, out: Path, seed: int, protect: float) -> Path:
    """The mask of what moves most when all tasks are tuned on, in the way of CPI-FT."""
    file = out / f"probe-{seed}-{protect}.safetensors"
    if not file.exists():
        isolation = {"protect": protect, "score": "moved", "source": "static", "warmup": 0.99}
        run = _run(base, out / f"probe-{seed}", seed, ORDERS[0], {"isolation": isolation, "order": "mixed"})
        from raylm.train.isolation import save_mask

        assert run.engine.optimizer.isolation is not None
        save_mask(run.engine.optimizer.isolation, file)
    return file


def _base(out: Path, seed: int) -> Path:
    """A model that can do a little of everything."""
    base = out / f"base-{seed}"
    if (base / "config.json").exists():
        return base
    start = out / f"start-{seed}"
    micro.build(start)
    settings = LlamaConfig.from_pretrained(start)
    settings.hidden_size, settings.intermediate_size, settings.num_hidden_layers = 96, 288, 4
    settings.num_attention_heads = settings.num_key_value_heads = 4
    settings.head_dim = 24
    torch.manual_seed(seed)
    LlamaForCausalLM(settings).float().save_pretrained(start)
    models.check(start)
    changes = {"isolation": {"enabled": False}, "order": "mixed", "epochs": EPOCHS}
    run = _run(start, out / f"pretraining-{seed}", seed, list(TASKS), changes, part="general")
    run.finish()
    (out / f"pretraining-{seed}" / "model").rename(base)
    return base


def summarise(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Forgetting, plasticity and the place beside the front of every arm, in sequences and mixed."""
    figures: dict[str, Any] = {}
    intervals: dict[str, list[float]] = {}
    rows = [{**row, "looks": _numbers(row["looks"])} for row in rows]
    sequences = [row for row in rows if row["order"] != ["mixed"]]
    mixed = [row for row in rows if row["order"] == ["mixed"]]
    for arm in dict.fromkeys(row["arm"] for row in sequences):
        for measure in analysis.MEASURES:
            figures[f"{measure}_{arm}"], intervals[f"{measure}_{arm}"] = analysis.mean(sequences, arm, measure)
        figures[f"beyond_front_{arm}"], intervals[f"beyond_front_{arm}"] = analysis.beyond_front(sequences, arm, FRONT)
    for arm in dict.fromkeys(row["arm"] for row in mixed):
        figures[f"mixed_final_{arm}"], intervals[f"mixed_final_{arm}"] = analysis.mean(mixed, arm, "final")
    return figures, intervals


def _numbers(looks: dict[str, dict[Any, float]]) -> dict[str, dict[int, float]]:
    """JSON made text of the steps."""
    return {name: {int(step): value for step, value in found.items()} for name, found in looks.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--rows-only", action="store_true", help="run these and write no result")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/epi"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    main(options.seeds, options.arms, options.out, options.rows_only)
