"""Does contrast beat filtering? The micro tier: many arms, sizes and seeds of a small model.

    python -m jobs.studies.crps.run [--seeds 0 1 2] [--problems N] [--rows-only] [--out runs/studies/crps]

Each seed has its own half-trained model, problems, searches and test questions. All arms share a seed's problems, and
both kinds of search (MCTS, independent sampling) spend the same tokens on each. A run tunes the model on a subset of an
arm's chains and answers both suites greedily. Finished runs are lines of rows-SEED.jsonl, and the same command goes on
from them, so that seeds may also be run side by side, with --rows-only. The result is studies/results/crps.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs import results
from jobs.studies.crps import analysis
from jobs.studies.crps.arms import ARMS, chains, search, subset, within_tokens
from jobs.studies.crps.base import World, pretrain, problems, train
from raylm.llm import engine, models
from raylm.llm.chat import prompt_ids
from raylm.llm.config import EngineConfig
from raylm.llm.protocol import Sampling
from raylm.records import Chain, Problem, Tree, from_table, to_table
from raylm.storage import Store
from raylm.tasks.answers import extract_answer
from raylm.train.config import FinetuneConfig
from raylm.train.worker import build_model

SIZES = (64, 128, 256, 512)
REFERENCE_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
FEW_SIZES = (64, 256)
"""Of the arms that only say which part of A4 makes the difference."""
FULL_ARMS = ("A0_best_form", "A1_best_path", "A4_crps")
DIFFERENCES = {
    "crps_minus_rejection": ("A4_crps", "A0_rejection"),
    "crps_minus_best_path": ("A4_crps", "A1_best_path"),
    "crps_minus_best_value": ("A4_crps", "A1_best_value"),
    "crps_minus_same_problems": ("A4_crps", "A7_rejection_same"),
    "crps_minus_fewest_steps": ("A4_crps", "A4_fewest_steps"),
    "crps_minus_released": ("A4_crps", "A4_released"),
    "crps_minus_random_pairs": ("A4_crps", "A6_random_pairs"),
    "crps_minus_form_without_search": ("A4_crps", "A0_best_form"),
    "crps_minus_corrections": ("A4_crps", "correction"),
    "keep_minus_crps": ("A4_keep", "A4_crps"),
    "check_minus_crps": ("A4_check", "A4_crps"),
    "full_minus_crps": ("A4_full", "A4_crps"),
    "check_minus_good_only": ("A4_check", "A3_good_only"),
    "crps_minus_shuffled_critique": ("A4_check", "A5_shuffled"),
}
"""Key to (one arm, minus another), at their common sizes."""
SUITES = {"in_domain": 400, "out_of_domain": 400}
TOKENS = 240
"""Generated tokens of a problem's tree."""
TUNING: dict[str, Any] = {
    "epochs": 3, "batch_size": 32, "micro_batch": 32, "lr": 1e-4, "warmup_share": 0.1, "max_length": 160,
    "workers": 1, "engine": "torch", "isolation": {"enabled": False},
}  # fmt: skip


def main(seeds: Sequence[int], count: int, out: Path, rows_only: bool) -> None:
    """Make what is missing, and write the result unless other seeds are still to come."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in seeds:
        file = out / f"rows-{seed}.jsonl"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        done = {(row["seed"], row["arm"], row["by"], row["n"]) for row in found}
        for row in _seed(seed, count, out, done):
            found.append(row)
            with file.open("a") as sink:
                sink.write(json.dumps(row) + "\n")
        rows += found
    if rows_only:
        return
    figures, intervals = summarise(rows)
    figures |= {"problems": count, "tokens_per_problem": TOKENS}
    print(results.write("studies/results/crps", figures, rows, intervals=intervals, seeds=seeds))


def _seed(seed: int, count: int, out: Path, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """All runs of one seed that are not done."""
    world, avoid = World(), set[str]()
    suites = {
        "in_domain": problems(world, SUITES["in_domain"], 10_000 + seed, world.terms, avoid),
        "out_of_domain": problems(world, SUITES["out_of_domain"], 20_000 + seed, world.longer, avoid),
    }
    pool = problems(world, count, 30_000 + seed, world.terms, avoid)
    base = out / f"base-{seed}"
    pretrain(world, base, seed, avoid)
    trees = {
        name: _searched(out, name, base, pool, strategy, seed)
        for name, strategy in (("mcts", "mcts"), ("flat", "best_of_n"))
    }
    if (seed, "base", "n", 0) not in done:
        yield {"seed": seed, "arm": "base", "by": "n", "n": 0, "chains": 0, **_right(base, suites)}
    for arm, (source, _) in ARMS.items():
        found = chains(arm, trees, seed)
        for by, n, part in _parts(arm, found, trees[source], seed):
            if (seed, arm, by, n) in done or not part:
                continue
            start = time.monotonic()
            tuned = out / f"tuned-{seed}"
            _tune(base, part, tuned, seed)
            row = {"seed": seed, "arm": arm, "by": by, "n": n, "chains": len(part), **_right(tuned, suites)}
            accuracy = {name: sum(row[name]) / len(row[name]) for name in SUITES}
            print(f"seed {seed} {arm} {by} {n} ({len(part)} chains, {time.monotonic() - start:.0f} s): {accuracy}",
                  file=sys.stderr, flush=True)  # fmt: skip
            yield row


def _parts(arm: str, pool: Sequence[Chain], trees: Sequence[Tree], seed: int) -> Iterator[tuple[str, int, list[Chain]]]:
    """The training sets of an arm: by number of examples, and by the tokens of the search that they came from."""
    sizes = REFERENCE_SIZES if arm == analysis.REFERENCE else SIZES if arm in FULL_ARMS else FEW_SIZES
    for size in sizes:
        if size <= len(pool):
            yield "n", size, subset(pool, size, seed)
    total = sum(tree.generated_tokens for tree in trees)
    if arm in (analysis.REFERENCE, "A4_crps"):
        for share in (0.125, 0.25, 0.5, 1.0):
            yield "share", round(1000 * share), within_tokens(pool, trees, int(total * share))


def _searched(  # noqa: PLR0917
    out: Path, name: str, base: Path, pool: Sequence[Problem], strategy: str, seed: int
) -> list[Tree]:
    store, file = Store(str(out)), f"trees-{name}-{seed}.parquet"
    if not store.exists(file):
        start = time.monotonic()
        trees = search(base, pool, strategy, TOKENS, seed)
        seconds = time.monotonic() - start
        print(f"seed {seed}: {len(trees)} trees by {strategy} in {seconds:.0f} s", file=sys.stderr, flush=True)
        store.write_table(file, to_table(Tree, trees))
    return from_table(Tree, store.read_table(file))


def _tune(base: Path, part: Sequence[Chain], target: Path, seed: int) -> None:
    config = FinetuneConfig(**{**TUNING, "seed": seed, "batch_size": min(32, len(part))})
    model, tokenizer = build_model(str(base), config), models.load_tokenizer(base)
    data = [{"id": c.id, "messages": [{"role": m.role, "content": m.content} for m in c.messages]} for c in part]
    train(model, tokenizer, data, config)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _right(model: Path, suites: dict[str, list[Problem]]) -> dict[str, list[int]]:
    return asyncio.run(_answers(model, suites))


async def _answers(model: Path, suites: dict[str, list[Problem]]) -> dict[str, list[int]]:
    """1 or 0 for every question of every suite, answered greedily."""
    config = EngineConfig(
        kind="transformers", model=str(model), context=192, dtype="float32", max_in_flight=200, kv_cache_gib=1.0
    )
    answering = await engine.build(config, cpus=2)
    found: dict[str, list[int]] = {}
    for name, items in suites.items():
        how = Sampling(temperature=0.0, max_tokens=100)
        asked = [prompt_ids(answering.tokenizer, [{"role": "user", "content": item.question}]) for item in items]
        answers = await asyncio.gather(*(answering.generate(ids, how) for ids in asked))
        texts = [answer.completions[0].text for answer in answers]
        found[name] = [int(extract_answer(text) == item.answer) for text, item in zip(texts, items, strict=True)]
    await answering.close()
    return found


def summarise(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Accuracy of every arm and size, multipliers, and differences between arms."""
    figures: dict[str, Any] = {}
    intervals: dict[str, list[float]] = {}
    for by, axis in (("n", "examples"), ("share", "tokens")):
        runs = [row for row in rows if row["by"] == by]
        for row_key in sorted({(row["arm"], row["n"]) for row in runs}):
            group = [row for row in runs if (row["arm"], row["n"]) == row_key]
            for suite in SUITES:
                values = [value for row in group for value in row[suite]]
                figures[f"{suite}_{row_key[0]}_{axis}_{row_key[1]}"] = sum(values) / len(values)
    by_size = [row for row in rows if row["by"] == "n"]
    common = [size for size in SIZES if _complete(by_size, "A4_crps", size)]
    for suite, prefix in (("in_domain", ""), ("out_of_domain", "ood_")):
        for size in common[:3]:
            found = analysis.multiplier(by_size, "A4_crps", size, suite)
            for key in [f"{prefix}multiplier_at_{size}"] + ([f"{prefix}multiplier"] if size == common[0] else []):
                figures[key], intervals[key] = found["multiplier"], found["interval"]
            figures[f"{prefix}multiplier_at_{size}_censored_share"] = found["censored_share"]
        by_tokens = [row for row in rows if row["by"] == "share"]
        found = analysis.multiplier(by_tokens, "A4_crps", 250, suite)
        figures[f"{prefix}multiplier_equal_tokens"] = found["multiplier"]
        intervals[f"{prefix}multiplier_equal_tokens"] = found["interval"]
        for name, (ours, other) in DIFFERENCES.items():
            gap = analysis.difference(by_size, ours, other, suite, common)
            figures[f"{prefix}{name}"], intervals[f"{prefix}{name}"] = gap["difference"], gap["interval"]
    return figures, intervals


def _complete(rows: Sequence[dict[str, Any]], arm: str, size: int) -> bool:
    return {row["seed"] for row in rows} == {row["seed"] for row in rows if (row["arm"], row["n"]) == (arm, size)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--problems", type=int, default=2_000)
    parser.add_argument("--rows-only", action="store_true", help="run these seeds and write no result")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/crps"))
    options = parser.parse_args()
    main(options.seeds, options.problems, options.out, options.rows_only)
