"""Does evolving isolation move the front of forgetting against plasticity?

    python -m jobs.studies.epi.run [--select 0] [--seeds 1 2 3] [--arms NAME ...] [--rows-only] [--threads N]
        [--out runs/studies/epi]

A Llama of half a million parameters is pretrained on five unlike tasks, and then tuned on four of them, one after the
other, in two orders, or mixed. It is looked at what it gets right of all five. All arms of a seed share model, data,
batches and number of steps; learning rates of full fine-tuning are the front that isolation has to pass. Each family of
arms has its setting chosen on one seed, by the mean score in the end, and is reported on the others. Finished runs are
lines of rows-SEED.jsonl, and the same command goes on from them. The result is studies/results/epi.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jobs import results
from jobs.studies.epi import analysis
from jobs.studies.epi.arms import ALONE, ARMS, FAMILIES, FRONT, MIXED
from jobs.studies.epi.tasks import BEFORE, ORDERS, TASKS, write
from raylm.config import build
from raylm.llm import micro, models
from raylm.train.config import FinetuneConfig
from raylm.train.run import Run

SIZES = (3_500, 1_500, 150)
"""Chats of a task for pretraining, tuning and looking."""
EPOCHS = 3
"""Of pretraining, on all tasks."""
SETTINGS: dict[str, Any] = {
    "engine": "torch", "workers": 1, "batch_size": 16, "micro_batch": 16, "epochs": 2, "lr": 4e-4, "weight_decay": 0.01,
    "warmup_share": 0.05, "max_length": 96, "checkpoint_every": 1_000_000, "watch": {"every": 0.125},
}  # fmt: skip


def main(select: int, seeds: Sequence[int], arms: Sequence[str], out: Path, rows_only: bool) -> None:
    """Make what is missing, and write the result unless other runs are still to come."""
    tried = list(_seed(select, arms, (), out))
    if rows_only and arms != list(ARMS):
        return
    chosen = {family: analysis.best(_sequences(tried), list(members)) for family, members in FAMILIES.items()}
    print(f"chosen on seed {select}: {chosen}", file=sys.stderr)
    wanted = list(dict.fromkeys([*FRONT, *chosen.values()]))
    mixed = [chosen[family] for family in MIXED]
    rows = [row for seed in seeds for row in _seed(seed, wanted, mixed, out)]
    if rows_only:
        return
    figures, intervals = summarise(rows, chosen)
    figures["tried"] = measures(_sequences(tried), ARMS)
    print(results.write("studies/results/epi", figures, tried + rows, intervals=intervals, seeds=[select, *seeds]))


def _seed(seed: int, arms: Sequence[str], mixed: Sequence[str], out: Path) -> Iterator[dict[str, Any]]:
    """All rows of one seed, those that are in its file and those made now."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"rows-{seed}.jsonl"
    base = _base(out, seed)
    for arm in arms:
        alone = [(task,) for task in ORDERS[0]] if arm == ALONE and mixed else []
        for order in (*ORDERS, *([("mixed",)] if arm in mixed else []), *alone):
            if (row := _found(file, arm, order)) is None:
                start = time.monotonic()
                row = one(base, out, seed, arm, order)
                with file.open("a") as sink:
                    sink.write(json.dumps(row) + "\n")
                said = {name: round(measure(row), 3) for name, measure in analysis.MEASURES.items()}
                print(
                    f"seed {seed} {arm} {' '.join(order)} ({time.monotonic() - start:.0f} s): {said}", file=sys.stderr
                )
            yield row


def _found(file: Path, arm: str, order: Sequence[str]) -> dict[str, Any] | None:
    """The row of a run that is done."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for row in rows:
        if row["arm"] == arm and row["order"] == list(order):
            looks = {name: {int(step): value for step, value in found.items()} for name, found in row["looks"].items()}
            return {**row, "looks": looks}
    return None


def _sequences(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if len(row["order"]) > 1]


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
    run = _run(base, out / f"run-{seed}-{arm}", seed, names, {**changes, "lr": lr, "order": how})
    looks: dict[str, dict[int, float]] = {}
    for row in run.watch.rows:
        looks.setdefault(row["set"], {})[row["step"]] = row["exact"]
    ends = {name: len(run.rows) for name in names}
    if not mixed:
        ends = {run.plan.task_at(step): step + 1 for step in range(run.plan.steps)}
    kept = run.engine.optimizer.isolation
    masks = [{key: mask[key] for key in mask if key != "layers"} for mask in kept.log] if kept is not None else []
    moved = _distance(base, run)
    shutil.rmtree(out / f"run-{seed}-{arm}")
    return {"seed": seed, "arm": arm, "order": list(order), "looks": looks, "ends": ends, "distance": moved,
            "masks": masks}  # fmt: skip


def _distance(base: Path, run: Run) -> float:
    """L2 norm of what training changed."""
    from safetensors.torch import load_file

    start = load_file(base / "model.safetensors")
    model = run.engine.model
    model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    now = {name: value.detach() for name, value in model.state_dict().items() if name in start}
    return float(torch.sqrt(sum(((now[name] - start[name]) ** 2).sum() for name in now)))


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


def summarise(rows: Sequence[dict[str, Any]], chosen: dict[str, str]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Every family's chosen arm on seeds that it was not chosen on: its measures, and its place beside the front."""
    sequences = _sequences(rows)
    mixed = [row for row in rows if row["order"] == ["mixed"]]
    found = {f"forgetting_{arm}": analysis.mean(sequences, arm, "forgetting") for arm in FRONT}
    found |= {f"new_task_{arm}": analysis.mean(sequences, arm, "new_task") for arm in FRONT}
    for family, arm in chosen.items():
        for measure in analysis.MEASURES:
            found[f"{measure}_{family}"] = analysis.mean(sequences, arm, measure)
        found[f"beyond_front_{family}"] = analysis.beyond_front(sequences, arm, FRONT)
        found[f"beyond_front_by_distance_{family}"] = analysis.beyond_front(sequences, arm, FRONT, analysis.distance)
        found[f"interference_{family}"] = analysis.interference(rows, arm, ALONE)
    for family, other in chosen.items():
        for measure in analysis.MEASURES if family != "epi" else ():
            key = f"{measure}_epi_minus_{family}"
            found[key] = analysis.difference(sequences, chosen["epi"], other, measure)
    for family in MIXED:
        found[f"mixed_final_{family}"] = analysis.mean(mixed, chosen[family], "final")
    found |= analysis.drift(sequences, chosen["epi"])
    figures: dict[str, Any] = {"chosen": chosen} | {key: value for key, (value, _) in found.items()}
    return figures, {key: bounds for key, (_, bounds) in found.items()}


def measures(rows: Sequence[dict[str, Any]], arms: Iterable[str]) -> dict[str, dict[str, float]]:
    """Means of the arms by measure, for the seed that they are chosen on."""
    return {arm: {name: round(analysis.mean(rows, arm, name)[0], 4) for name in analysis.MEASURES} for arm in arms}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--select", type=int, default=0, help="seed on which each family's setting is chosen")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="those on which it is reported")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--rows-only", action="store_true", help="run these and write no result")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/epi"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    main(options.select, options.seeds, options.arms, options.out, options.rows_only)
