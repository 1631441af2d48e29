"""Does evolving isolation move the front of forgetting against plasticity?

    python -m jobs.studies.epi.run [--tier micro|real] [--select 0] [--seeds 1 2 3] [--arms NAME ...] [--rows-only]
        [--shard I N] [--threads N] [--out runs/studies]

micro: a Llama of 0.3 million parameters is pretrained on five unlike tasks, and then tuned on four of them, one
after the other, in two orders, or mixed. real: SmolLM2-135M on worked solutions, SQL, descriptions and intents. It is
looked at what the model gets right of all five tasks. All arms of a seed share model, data, batches and number of
steps; learning rates of full fine-tuning are the front that isolation has to pass. Each family of arms has its setting
chosen on one seed and order, by the mean score in the end, and is reported on the others. Finished runs are lines of
rows-SEED.jsonl, and the same command goes on from them. The result is studies/results/epi.json or epi_real.json.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from jobs import results
from jobs.studies.epi import analysis
from jobs.studies.epi.analysis import LOOKS
from jobs.studies.epi.tiers import TIERS, Tier
from raylm.train.run import Run

Kind = tuple[str, tuple[str, ...]]
"""Arm and order of tasks."""


def main(tier: Tier, out: Path, options: argparse.Namespace) -> None:
    """Make what is missing, and write the result unless other runs are still to come."""
    select, seeds, shard = options.select, options.seeds, tuple(options.shard)
    arms = options.arms
    if not arms or arms == ["all"]:  # a family of one leaves no choice
        arms = [name for family in tier.families.values() if len(family) > 1 for name in family]
    tried = list(rows_of(tier, select, [(arm, tier.orders[0]) for arm in arms], out, shard=shard))
    if options.arms:
        return
    scored = analysis.by(tried, tier.scored)
    chosen = {
        family: analysis.best(scored, list(members)) if len(members) > 1 else next(iter(members))
        for family, members in tier.families.items()
    }
    print(f"chosen on seed {select}: {chosen}", file=sys.stderr)
    rows = [
        row
        for kinds in rounds(tier, chosen)
        for seed in seeds
        for row in rows_of(tier, seed, kinds, out, shard=shard)
    ]  # fmt: skip
    if options.rows_only:
        return
    figures, intervals = summarise(tier, rows, chosen)
    figures["tried"] = measures(scored, arms)
    name = f"studies/results/{tier.name}"
    print(results.write(name, figures, tried + rows, intervals=intervals, seeds=[select, *seeds]))


def rounds(tier: Tier, chosen: dict[str, str]) -> list[list[Kind]]:
    """What a seed is to report: the chosen arms and the front in one order after the other, then mixed, and each task
    alone."""
    arms = list(dict.fromkeys([*tier.front, *chosen.values()]))
    found = [[(arm, order) for arm in arms] for order in tier.orders]
    if tier.mixed:
        alone = [(tier.front[0], (task,)) for task in tier.orders[0]]
        mixed = dict.fromkeys([tier.front[0], *(chosen[family] for family in tier.mixed)])
        found.append([*((arm, ("mixed",)) for arm in mixed), *alone])
    return found


def rows_of(
    tier: Tier, seed: int, kinds: Sequence[Kind], out: Path, *, shard: Sequence[int] = (0, 1)
) -> Iterator[dict[str, Any]]:
    """The rows of one seed that are in its file, and of the others every `shard[1]`-th from `shard[0]` on, made now."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"rows-{seed}.jsonl"
    with _locked(out / f"base-{seed}"):
        base = tier.base(out, seed)
    for number, (arm, order) in enumerate(kinds):
        if (row := _found(file, arm, order)) is None:
            if number % shard[1] != shard[0]:
                continue
            start = time.monotonic()
            row = one(tier, base, out, seed=seed, arm=arm, order=order)
            with file.open("a") as sink:
                sink.write(json.dumps(row) + "\n")
            said = {name: round(measure(row), 3) for name, measure in analysis.MEASURES.items()}
            print(f"seed {seed} {arm} {' '.join(order)} ({time.monotonic() - start:.0f} s): {said}", file=sys.stderr)
        yield row


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time makes what lies at a path."""
    with path.with_name(f"{path.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _found(file: Path, arm: str, order: Sequence[str]) -> dict[str, Any] | None:
    """The row of a run that is done."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for row in rows:
        if row["arm"] == arm and row["order"] == list(order):
            for key in LOOKS:
                row[key] = {n: {int(step): value for step, value in found.items()} for n, found in row[key].items()}
            return row
    return None


def _sequences(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if len(row["order"]) > 1]


def one(tier: Tier, base: Path, out: Path, *, seed: int, arm: str, order: Sequence[str]) -> dict[str, Any]:
    """The row of one run."""
    mixed = tuple(order) == ("mixed",)
    names = tier.orders[0] if mixed else order
    changes = dict(tier.arms[arm])
    lr = tier.settings["lr"] * changes.pop("lr_factor", 1.0)
    isolation = dict(changes.get("isolation", {}))
    if isolation.get("source") == "file":
        with _locked(out / f"probe-{seed}"):
            isolation["mask_file"] = str(_probe(tier, base, out, seed, isolation["protect"]))
        changes["isolation"] = isolation
    scoped = isolation.get("scope") == "per_task"
    how = ("by_task" if scoped else "mixed") if mixed else "sequential"
    folder = out / f"run-{seed}-{arm}-{order[0]}"
    run = tier.train(base, folder, names, {**changes, "lr": lr, "order": how}, seed=seed)
    looks: dict[str, dict[str, dict[int, float]]] = {name: {} for name in LOOKS}
    for row in run.watch.rows:
        for name, key in LOOKS.items():
            looks[name].setdefault(row["set"], {})[row["step"]] = round(row[key], 4)
    ends = {name: len(run.rows) for name in names}
    if not mixed:
        ends = {run.plan.task_at(step): step + 1 for step in range(run.plan.steps)}
    kept = run.engine.optimizer.isolation
    masks = [{key: mask[key] for key in mask if key != "layers"} for mask in kept.log] if kept is not None else []
    moved = _distance(base, run)
    shutil.rmtree(folder)
    return {"seed": seed, "arm": arm, "order": list(order), **looks, "ends": ends, "distance": moved, "masks": masks}


def _distance(base: Path, run: Run) -> float:
    """L2 norm of what training changed."""
    from safetensors.torch import load_file

    start = load_file(base / "model.safetensors")
    model = run.engine.model
    model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    now = {name: value.detach() for name, value in model.state_dict().items() if name in start}
    return sum(float(((now[name] - start[name]) ** 2).sum()) for name in now) ** 0.5


def _probe(tier: Tier, base: Path, out: Path, seed: int, protect: float) -> Path:
    """The mask of what moves most when all tasks are tuned on, in the way of CPI-FT."""
    file = out / f"probe-{seed}-{protect}.safetensors"
    if not file.exists():
        isolation = {"protect": protect, "score": "moved", "source": "static", "warmup": 0.99}
        folder = out / f"probe-{seed}"
        run = tier.train(base, folder, tier.orders[0], {"isolation": isolation, "order": "mixed"}, seed=seed)
        from raylm.train.isolation import save_mask

        assert run.engine.optimizer.isolation is not None
        save_mask(run.engine.optimizer.isolation, file)
        shutil.rmtree(folder)
    return file


def summarise(
    tier: Tier, rows: Sequence[dict[str, Any]], chosen: dict[str, str]
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Every family's chosen arm on seeds that it was not chosen on: its measures, and its place beside the front.

    Figures count whole responses; the same of tokens, which scatter less, end in `_tokens`.
    """
    found: dict[str, analysis.Figure] = {}
    for looks in LOOKS:
        ending = "" if looks == "looks" else "_tokens"
        measured = analysis.by(rows, looks)
        found |= {key + ending: figure for key, figure in _compared(tier, measured, chosen).items()}
    found |= analysis.drift(_sequences(rows), chosen["epi"])
    figures: dict[str, Any] = {"chosen": chosen} | {key: value for key, (value, _) in found.items()}
    return figures, {key: bounds for key, (_, bounds) in found.items()}


def _compared(tier: Tier, rows: Sequence[dict[str, Any]], chosen: dict[str, str]) -> dict[str, analysis.Figure]:
    sequences, found = _sequences(rows), {}
    start = [{**analysis.untrained(run), "arm": "untrained"} for run in sequences]
    found["final_untrained"] = analysis.mean(start, "untrained", "final")
    for name, arm in [*((arm, arm) for arm in tier.front), *chosen.items()]:
        for measure in analysis.MEASURES:
            found[f"{measure}_{name}"] = analysis.mean(sequences, arm, measure)
    for family, arm in chosen.items():
        found[f"beyond_front_{family}"] = analysis.beyond_front(sequences, arm, tier.front)
        by_distance = analysis.beyond_front(sequences, arm, tier.front, analysis.distance)
        found[f"beyond_front_by_distance_{family}"] = by_distance
        if tier.mixed:
            found[f"interference_{family}"] = analysis.interference(rows, arm, tier.front[0])
        for measure in analysis.MEASURES if family != "epi" else ():
            found[f"{measure}_epi_minus_{family}"] = analysis.difference(sequences, chosen["epi"], arm, measure)
    mixed = [row for row in rows if row["order"] == ["mixed"]]
    for family in tier.mixed:
        found[f"mixed_final_{family}"] = analysis.mean(mixed, chosen[family], "final")
    return found


def measures(rows: Sequence[dict[str, Any]], arms: Iterable[str]) -> dict[str, dict[str, float]]:
    """Means of the arms by measure, for the seed that they are chosen on."""
    return {arm: {name: round(analysis.mean(rows, arm, name)[0], 4) for name in analysis.MEASURES} for arm in arms}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="micro")
    parser.add_argument("--select", type=int, default=0, help="seed on which each family's setting is chosen")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="those on which it is reported")
    parser.add_argument("--arms", nargs="+", default=[], help="only try these, or all, on the seed of --select")
    parser.add_argument("--shard", type=int, nargs=2, default=(0, 1), help="of the runs, make every N-th from I on")
    parser.add_argument("--rows-only", action="store_true", help="make the runs and write no result")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = TIERS[options.tier]
    main(size, options.out / size.name, options)
