"""The arms of the study: what each trains on, out of the same searches."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from jobs.studies.crps.tiers import Tier
from raylm.config import build
from raylm.crps.config import SynthesizeConfig
from raylm.crps.forms import Forms
from raylm.crps.worker import SynthesizeWorker
from raylm.records import Chain, Problem, Tree, from_table, to_table
from raylm.search.config import ExploreConfig
from raylm.search.explore import ExploreWorker
from raylm.storage import Store
from raylm.units import Unit

TREES_PER_BATCH = 64
CONTRAST = {"method": "crps", "without_pair": "skip", "pitfall": "none"}
FORM = {"anchor": "best_form"}
ALL = {"filters": {"max_per_problem": 64}}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "A0_rejection": ("flat", {"method": "rejection", **ALL}),
    "A0_best_form": ("flat", {"method": "best_path", "pairs": FORM}),
    "A0_keep_form": ("flat", {"method": "rejection", "pairs": {**FORM, "keep": 0.6}, **ALL}),
    "A1_best_path": ("mcts", {"method": "best_path"}),
    "A1_best_value": ("mcts", {"method": "best_path", "pairs": {"anchor": "best_value"}}),
    "A2_analyst_only": ("flat", {"method": "rejection", "filters": {"max_per_problem": 1}}),
    "A3_good_only": ("mcts", {"method": "good_only", "pairs": FORM}),
    "A4_crps": ("mcts", {**CONTRAST, "pairs": FORM}),
    "A4_fewest_steps": ("mcts", CONTRAST),
    "A4_released": ("mcts", {**CONTRAST, "pairs": {"choose": "visits"}}),
    "A4_keep": ("mcts", {**CONTRAST, "pairs": {**FORM, "keep": 0.6}}),
    "A4_check": ("mcts", {**CONTRAST, "pairs": FORM, "pitfall": "check"}),
    "A4_full": ("mcts", {**CONTRAST, "pairs": FORM, "pitfall": "full"}),
    "A5_shuffled": ("mcts", {**CONTRAST, "pairs": FORM, "pitfall": "check", "method": "shuffled"}),
    "A6_random_pairs": ("mcts", {**CONTRAST, "pairs": {"choose": "random"}}),
    "A6_hard_only": ("mcts", {**CONTRAST, "pairs": {**FORM, "hard_ratio": 1.0}}),
    "A6_soft_only": ("mcts", {**CONTRAST, "pairs": {**FORM, "hard_ratio": 0.0}}),
    "A7_rejection_same": ("flat", {"method": "rejection", **ALL}),
    "correction": ("mcts", {"method": "correction"}),
}
"""Name to (whose trees, what differs in the synthesis).

A1 and A4_released take the shortest right path as the anchor, as the released code does. A0_best_form chooses by form
among independent samples: what remains of A4 without a search and without pairs; A0_keep_form takes all right ones
but those of a poor form. A2 is a solution that the analyst writes from the problem alone, kept where it is right: the
analyst is the policy itself here, so it is one independent sample. A3 and A5 reflect in text, so that A4_check is
what they compare with. A7 keeps A0's chains of the problems that A4 has some of.
"""


def search(tier: Tier, model: Path, problems: Sequence[Problem], strategy: str, seed: int) -> list[Tree]:
    """One tree a problem, the tier's tokens each, grown in this process."""
    config = build(
        ExploreConfig,
        {
            "problems": [{"name": "sums", "kind": "dataset", "path": "unused"}],
            "engine": {**tier.engine, "model": str(model)},
            "prompt": tier.searched_with.model_dump(),
            "search": {
                **tier.search, "strategy": strategy, "rounds": 1_000, "token_budget": tier.tokens, "enough_good": 0,
                "easy_rounds": 0, "patience": 8,
            },
            "seed": seed,
            "compute": {"cpus": torch.get_num_threads()},
        },
    )  # fmt: skip
    return asyncio.run(_search(config, problems))


async def _search(config: ExploreConfig, problems: Sequence[Problem]) -> list[Tree]:
    worker, gate = ExploreWorker(config), asyncio.Semaphore(64)
    await worker.start()
    with tempfile.TemporaryDirectory() as folder:

        async def one(number: int) -> Tree:
            async with gate:
                unit = Unit(str(number), {"problem": asdict(problems[number])})
                return from_table(Tree, (await worker.run(unit, Store(folder)))[0])[0]

        trees = await asyncio.gather(*(one(number) for number in range(len(problems))))
    await worker.close()
    return list(trees)


def chains(tier: Tier, arm: str, trees: dict[str, list[Tree]], seed: int) -> list[Chain]:
    """What an arm may train on: verified, free of faults and copies."""
    source, how = ARMS[arm]
    found = asyncio.run(_chains(trees[source], {**how, "prompt": tier.asked_with.model_dump(), "seed": seed}))
    if arm == "A7_rejection_same":
        solved = {chain.problem_id for chain in chains(tier, "A4_crps", trees, seed)}
        found = [chain for chain in found if chain.problem_id in solved]
    return found


async def _chains(trees: Sequence[Tree], how: dict[str, Any]) -> list[Chain]:
    found: list[Chain] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        name = "data/part-00000.parquet"
        store.write_table(name, to_table(Tree, trees))
        config = build(SynthesizeConfig, {"trees": folder, **how})
        wanted = config.pairs.anchor == "best_form"
        worker = SynthesizeWorker(config, [], Forms.fit(trees, config.seed, config.pairs.keep) if wanted else None)
        await worker.start()
        for start in range(0, len(trees), TREES_PER_BATCH):
            places = range(start, min(start + TREES_PER_BATCH, len(trees)))
            unit = Unit(str(start), {"questions": [[[name, row]] for row in places]})
            found += from_table(Chain, (await worker.run(unit, store))[0])
        await worker.close()
    return found


def subset(pool: Sequence[Chain], count: int, seed: int) -> list[Chain]:
    """`count` chains drawn without replacement; smaller subsets are the beginnings of larger ones."""
    order = list(pool)
    random.Random(seed).shuffle(order)
    return order[:count]


def within_tokens(pool: Sequence[Chain], trees: Sequence[Tree], tokens: int) -> list[Chain]:
    """The chains of the first trees that cost no more than `tokens` together."""
    spent, kept = 0, set()
    for tree in trees:
        spent += tree.generated_tokens
        if spent > tokens:
            break
        kept.add(tree.id)
    return [chain for chain in pool if chain.tree_id in kept]
