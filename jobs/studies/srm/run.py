"""Does a reward model of branches judge better than a scalar one, and say rightly why?

    python -m jobs.studies.srm.run [--sets planted summeval ...] [--seeds 0 1 2 3 4] [--text-seeds 3] [--rows-only]
        [--threads N] [--out runs/studies/srm]

Same frozen encoder, same heads, same pairs in every arm; each seed splits the prompts anew (a quarter is test, never
trained or chosen on). Arms: scalar (R0), srm (R1), branches shuffled (R2) or replaced by noise (R3), a wider scalar
head (R4), one branch out and one alone (R5), oracle branches (R6), length and a logistic regression on branch values
(R8), and on the planted set the published text fusion with the branches' words, those of other texts, or noise; the
generative judge (R7) is jobs.bench.reward. Real sets are read from $RAYLM_DATA. Finished seeds are files rows-SET-
SEED.jsonl, and the same command goes on from them. Results: studies/results/srm.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from jobs import results
from jobs.studies.srm import sets
from jobs.studies.srm.analysis import summarise
from jobs.studies.srm.arms import arms, elsewhere, text_arms
from raylm.config import build
from raylm.llm import models
from raylm.srm.config import RewardConfig
from raylm.srm.run import Run

Make = Callable[[str, int, str, Path], list[dict[str, Any]]]
"""Rows of a set, a seed, the encoder's directory and the study's folder."""
SETTINGS: dict[str, Any] = {
    "epochs": 12, "fusion_epochs": 12, "batch_size": 64, "head_lr": 3e-4,
    "max_cut_share": 1.0, "min_gap": 0.5,
}  # fmt: skip


def main(names: Sequence[str], seeds: Sequence[int], out: Path, rows_only: bool, *, text_seeds: int) -> None:
    """Make what is missing, and write the result unless other runs are still to come."""
    out.mkdir(parents=True, exist_ok=True)
    model = str(models.resolve_encoder("all-minilm-l6-v2").path)
    rows: list[dict[str, Any]] = []
    for name in names:
        for seed in seeds:
            rows += _kept(out / f"rows-{name}-{seed}.jsonl", _seed, name, seed, model)
        for seed in seeds[:text_seeds] if name == "planted" else ():
            rows += _kept(out / f"rows-{name}-text-{seed}.jsonl", _text, name, seed, model)
    if not rows_only:
        figures, intervals = summarise(rows)
        print(results.write("studies/results/srm", figures, rows, intervals=intervals, seeds=seeds))


def _kept(file: Path, make: Make, name: str, seed: int, model: str) -> list[dict[str, Any]]:
    """The rows of a file, made where it is not there."""
    if not file.exists():
        made = make(name, seed, model, file.parent)
        file.with_suffix(".new").write_text("".join(json.dumps(row) + "\n" for row in made))
        file.with_suffix(".new").rename(file)
    return [json.loads(line) for line in file.read_text().splitlines()]


@functools.lru_cache(maxsize=1)
def _store(name: str, model: str, out: Path) -> sets.Store:
    return sets.Store(model, out / "features" / name, sets.SETS[name].max_length)


def _trained(name: str, seed: int, model: str, out: Path, **changes: Any) -> Run:
    """A finished run on a set."""
    chosen = sets.SETS[name]
    config = build(RewardConfig, {
        **SETTINGS, **sets.files(name, seed, out), "seed": seed, "branches": chosen.branches(),
        "pairs_from": chosen.pairs_from, "max_length": chosen.max_length, **changes,
    })  # fmt: skip
    run = Run(config, model, known=_store(name, model, out))
    if name == "planted":
        run.decides = {row["prompt"]: row["decides"] for row in sets.rows(name)[0]}  # type: ignore[attr-defined]
    run.train(lambda row: None, lambda step, state: None)
    return run


def _text(name: str, seed: int, model: str, out: Path) -> list[dict[str, Any]]:
    start = time.monotonic()
    run = _trained(name, seed, model, out, fusion={"kind": "text"}, fusion_lr=1e-3)
    rows = [{"set": name, "seed": seed, **row} for row in text_arms(run, seed)]
    said = {row["arm"]: round(row["pair_accuracy"], 3) for row in rows}
    print(f"{name} {seed} {said}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return rows


def _seed(name: str, seed: int, model: str, out: Path) -> list[dict[str, Any]]:
    start = time.monotonic()
    run = _trained(name, seed, model, out)
    trained = time.monotonic() - start
    rows = []
    for row in arms(run, sets.SETS[name], seed):
        if name == "qa_feedback" and row["arm"] in ("scalar", "srm"):
            row["hhh_accuracy"] = elsewhere(run, _store(name, model, out), sets.elsewhere())
        rows.append({"set": name, "seed": seed, **row})
        print(
            f"{name} {seed} {row['arm']}: {row['pair_accuracy']:.3f} {row.get('attribution_top1', '')}", file=sys.stderr
        )
    print(f"{name} {seed}: {trained:.0f} s + {time.monotonic() - start - trained:.0f} s", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=sets.SETS, default=list(sets.SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--text-seeds", type=int, default=3, help="of the planted set, with text fusion: 20 min each")
    parser.add_argument("--rows-only", action="store_true", help="make the runs and write no result")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/srm"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    main(options.sets, options.seeds, options.out, options.rows_only, text_seeds=options.text_seeds)
