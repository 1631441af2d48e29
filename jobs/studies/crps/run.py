"""Does contrast beat filtering?

    python -m jobs.studies.crps.run [--tier micro|real] [--seeds 0 1 2] [--arms NAME ...] [--rows-only] [--again]
        [--threads N] [--out runs/studies]

Each seed has its own problems, searches and test questions, and in the micro tier its own half-trained model; the real
tier tunes SmolLM2-135M, and reads MAWPS and SVAMP below ${RAYLM_DATA}. All arms share a seed's problems, and both kinds
of search (MCTS, independent sampling) spend the same tokens on each. A run tunes the model on a subset of an arm's
chains and answers both suites greedily. How it tunes was chosen for rejection sampling, on problems of another seed.
Finished runs are lines of rows-SEED.jsonl, and the same command goes on from them, so that seeds may also be run side
by side, with --rows-only and a share of the cores each. The result is studies/results/crps.json, or that of the tier;
--again computes its figures anew from the rows beside it, without a run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from jobs import results
from jobs.studies.crps import analysis
from jobs.studies.crps.arms import ARMS, chains, search, subset, within_tokens
from jobs.studies.crps.base import train
from jobs.studies.crps.tiers import TIERS, Suites, Tier
from raylm.llm import engine, models
from raylm.llm.chat import prompt_ids
from raylm.llm.config import EngineConfig
from raylm.llm.protocol import Sampling
from raylm.records import Chain, Problem, Tree, from_table, to_table
from raylm.storage import Store
from raylm.tasks.config import VerifierConfig
from raylm.tasks.verify import VerifierPool
from raylm.train.config import FinetuneConfig
from raylm.train.model import build_model

DIFFERENCES = {
    "crps_minus_rejection": ("A4_crps", "A0_rejection"),
    "crps_minus_analyst_only": ("A4_crps", "A2_analyst_only"),
    "crps_minus_best_path": ("A4_crps", "A1_best_path"),
    "crps_minus_best_value": ("A4_crps", "A1_best_value"),
    "crps_minus_same_problems": ("A4_crps", "A7_rejection_same"),
    "crps_minus_fewest_steps": ("A4_crps", "A4_fewest_steps"),
    "crps_minus_released": ("A4_crps", "A4_released"),
    "crps_minus_random_pairs": ("A4_crps", "A6_random_pairs"),
    "crps_minus_form_without_search": ("A4_crps", "A0_best_form"),
    "form_minus_rejection": ("A0_keep_form", "A0_rejection"),
    "crps_minus_corrections": ("A4_crps", "correction"),
    "keep_minus_crps": ("A4_keep", "A4_crps"),
    "check_minus_crps": ("A4_check", "A4_crps"),
    "full_minus_crps": ("A4_full", "A4_crps"),
    "check_minus_good_only": ("A4_check", "A3_good_only"),
    "crps_minus_shuffled_critique": ("A4_check", "A5_shuffled"),
}
"""Key to (one arm, minus another), at their common sizes."""
SUITES = ("in_domain", "out_of_domain")


def main(tier: Tier, seeds: Sequence[int], out: Path, rows_only: bool, arms: Sequence[str] = ()) -> None:
    """Make what is missing, and write the result unless other seeds are still to come."""
    out = out / tier.name
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in seeds:
        file = out / f"rows-{seed}.jsonl"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        done = {(row["arm"], row["by"], row["n"]) for row in found}
        for row in _seed(tier, seed, out, done, arms):
            found.append(row)
            with file.open("a") as sink:
                sink.write(json.dumps(row) + "\n")
        rows += found
    if not rows_only:
        write(tier, seeds, rows)


def write(tier: Tier, seeds: Sequence[int], rows: list[dict[str, Any]] | None = None) -> None:
    """Write the result of these rows, or of those that are committed."""
    name = f"studies/results/{tier.name}"
    if rows is None:
        rows = [json.loads(line) for line in (results.HERE / f"{name}.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["seed"] in seeds]
    figures, intervals = summarise(rows)
    figures |= {"problems": tier.count, "tokens_per_problem": tier.tokens}
    print(results.write(name, figures, rows, intervals=intervals, seeds=seeds))


def _seed(
    tier: Tier, seed: int, out: Path, done: set[tuple[Any, ...]], arms: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """All runs of one seed that are not done, of some arms or of all; and how many chains each arm has."""
    suites, pool = tier.material(seed, tier.count)
    base = tier.base(out, seed)
    trees = Searches(lambda name: _searched(tier, out, name, base, pool, seed))
    if ("base", "n", 0) not in done:
        yield {"seed": seed, "arm": "base", "by": "n", "n": 0, "chains": 0, **_right(tier, base, suites)}
    for arm in arms or tier.arms:
        found = chains(tier, arm, trees, seed)
        if not any(each[:2] == (arm, "pool") for each in done):
            yield {"seed": seed, "arm": arm, "by": "pool", "n": len(found), "chains": len(found)}
        for by, n, part in _parts(tier, arm, found, trees[ARMS[arm][0]], seed):
            if (arm, by, n) in done or not part:
                continue
            start = time.monotonic()
            tuned = out / f"tuned-{seed}"
            _tune(tier, base, part, tuned, seed)
            row = {"seed": seed, "arm": arm, "by": by, "n": n, "chains": len(part), **_right(tier, tuned, suites)}
            accuracy = {name: sum(row[name]) / len(row[name]) for name in SUITES}
            print(f"seed {seed} {arm} {by} {n} ({len(part)} chains, {time.monotonic() - start:.0f} s): {accuracy}",
                  file=sys.stderr, flush=True)  # fmt: skip
            yield row


def _parts(
    tier: Tier, arm: str, pool: Sequence[Chain], trees: Sequence[Tree], seed: int
) -> Iterator[tuple[str, int, list[Chain]]]:
    """The training sets of an arm: by number of examples, and by the tokens of the search that they came from."""
    for size in tier.arms[arm]:
        if size <= len(pool):
            yield "n", size, subset(pool, size, seed)
    total = sum(tree.generated_tokens for tree in trees)
    if arm in (analysis.REFERENCE, "A0_keep_form", "A4_crps", "A4_keep"):
        for share in tier.shares:
            yield "share", round(1000 * share), within_tokens(pool, trees, int(total * share))


class Searches(dict[str, list[Tree]]):
    """The trees of a seed by the name of the search, made when an arm first asks for them."""

    def __init__(self, make: Callable[[str], list[Tree]]) -> None:
        """Make missing ones by `make(name)`."""
        super().__init__()
        self.make = make

    def __missing__(self, name: str) -> list[Tree]:
        """Search, and keep."""
        self[name] = self.make(name)
        return self[name]


STRATEGIES = {"mcts": "mcts", "flat": "best_of_n"}


def _searched(  # noqa: PLR0917
    tier: Tier, out: Path, name: str, base: Path, pool: Sequence[Problem], seed: int
) -> list[Tree]:
    strategy = STRATEGIES[name]
    store, file = Store(str(out)), f"trees-{name}-{seed}.parquet"
    if not store.exists(file):
        start = time.monotonic()
        trees = search(tier, base, pool, strategy, seed)
        seconds = time.monotonic() - start
        print(f"seed {seed}: {len(trees)} trees by {strategy} in {seconds:.0f} s", file=sys.stderr, flush=True)
        store.write_table(file, to_table(Tree, trees))
    return from_table(Tree, store.read_table(file))


def _tune(tier: Tier, base: Path, part: Sequence[Chain], target: Path, seed: int) -> None:
    settings = {**tier.tuning, "seed": seed, "batch_size": min(tier.tuning["batch_size"], len(part))}
    config = FinetuneConfig(**settings)
    model, tokenizer = build_model(str(base), config), models.load_tokenizer(base)
    data = [{"id": c.id, "messages": [{"role": m.role, "content": m.content} for m in c.messages]} for c in part]
    train(model, tokenizer, data, config)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _right(tier: Tier, model: Path, suites: Suites) -> dict[str, list[int]]:
    return asyncio.run(_answers(tier, model, suites))


async def _answers(tier: Tier, model: Path, suites: Suites) -> dict[str, list[int]]:
    """1 or 0 for every question of every suite, answered greedily."""
    answering = await engine.build(EngineConfig(**{**tier.engine, "model": str(model)}), cpus=torch.get_num_threads())
    verifier = VerifierPool(VerifierConfig())
    how = Sampling(temperature=0.0, max_tokens=tier.answer_tokens)

    async def right(item: Problem) -> int:
        asked = prompt_ids(answering.tokenizer, tier.asked_with.messages(item.question))
        text = (await answering.generate(asked, how)).completions[0].text
        return int((await verifier.verify(item, text)).verdict == "correct")

    found = {name: list(await asyncio.gather(*map(right, items))) for name, items in suites.items()}
    await answering.close()
    verifier.close()
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
    for arm in sorted({row["arm"] for row in rows if row["by"] == "pool"}):
        counts = [row["chains"] for row in rows if (row["arm"], row["by"]) == (arm, "pool")]
        figures[f"chains_{arm}"] = sum(counts) / len(counts)
    by_size = [row for row in rows if row["by"] == "n"]
    sizes = sorted({row["n"] for row in by_size if row["arm"] == "A4_crps"})
    common = [size for size in sizes if _complete(by_size, "A4_crps", size)]
    for suite, prefix in (("in_domain", ""), ("out_of_domain", "ood_")):
        for size in common[:3]:
            found = analysis.multiplier(by_size, "A4_crps", size, suite)
            for key in [f"{prefix}multiplier_at_{size}"] + ([f"{prefix}multiplier"] if size == common[0] else []):
                figures[key], intervals[key] = found["multiplier"], found["interval"]
            figures[f"{prefix}multiplier_at_{size}_censored_share"] = found["censored_share"]
        found = analysis.extrapolated(by_size, "A4_crps", suite, common)
        for key, source in (("multiplier_extrapolated", ""), ("rejection_points_per_doubling", "slope_")):
            figures[prefix + key] = found[source.rstrip("_") or "multiplier"]
            intervals[prefix + key] = found[f"{source}interval"]
        by_tokens = [row for row in rows if row["by"] == "share"]
        if by_tokens:
            found = analysis.multiplier(by_tokens, "A4_crps", 250, suite)
            figures[f"{prefix}multiplier_equal_tokens"] = found["multiplier"]
            intervals[f"{prefix}multiplier_equal_tokens"] = found["interval"]
        for name, (ours, other) in DIFFERENCES.items():
            if not {ours, other} <= {row["arm"] for row in by_size}:
                continue
            gap = analysis.difference(by_size, ours, other, suite, common)
            figures[f"{prefix}{name}"], intervals[f"{prefix}{name}"] = gap["difference"], gap["interval"]
    return figures, intervals


def _complete(rows: Sequence[dict[str, Any]], arm: str, size: int) -> bool:
    return {row["seed"] for row in rows} == {row["seed"] for row in rows if (row["arm"], row["n"]) == (arm, size)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="micro")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[], help="only run these; all by default")
    parser.add_argument("--rows-only", action="store_true", help="run these seeds and write no result")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    parser.add_argument("--again", action="store_true", help="no run: figures anew from the committed rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.again:
        write(TIERS[options.tier], options.seeds)
        raise SystemExit
    main(TIERS[options.tier], options.seeds, options.out, options.rows_only, options.arms)
