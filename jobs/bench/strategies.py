"""Search strategies at equal tokens: what each finds, and what a verified chain costs.

    python -m jobs.bench.strategies [config.yaml] [key=value ...] [--problems N] [--tokens N] [--seeds N]

Every strategy gets the same problems, the same engine and the same number of generated tokens a problem; none stops
early. Curves say what had been found at every smaller budget. `coverage` needs the verifier to know which response is
right, and so is what a search that makes training data is worth; `majority` is what it would answer without one.
Two of the strategies also run with a reward that a search without gold answers has: self-consistency.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from jobs import results
from jobs.bench.search import PRESET, search
from raylm.config import build, load
from raylm.crps.config import SynthesizeConfig
from raylm.crps.worker import SynthesizeWorker
from raylm.evaluation.stats import bootstrap
from raylm.pipeline.config import PipelineConfig
from raylm.records import Tree, to_table
from raylm.search.config import ExploreConfig, SearchConfig
from raylm.search.explore import ExploreWorker
from raylm.search.totals import Curve, Totals
from raylm.storage import Store
from raylm.tasks.sources import load_problems
from raylm.units import Unit

BLIND = {"verifier": 0.0, "consistency": 1.0}
ARMS: dict[str, dict[str, Any]] = {
    "mcts": {},
    "mcts_puct": {"rule": "puct"},
    "mcts_max": {"backup": "max"},
    "mcts_blind": {"value": BLIND},
    "beam": {"strategy": "beam"},
    "beam_blind": {"strategy": "beam", "value": BLIND},
    "best_of_n": {"strategy": "best_of_n"},
}
"""What differs from the preset's search; plain sampling with majority vote draws what best_of_n draws."""


async def main(given: Sequence[str], count: int, tokens: int, seeds: int) -> None:
    """Measure, and write bench/results/strategies.json."""
    stages = load(PipelineConfig, given).stage_configs()
    stage, synthesis = stages["explore"], stages["synthesize"]
    assert isinstance(stage, ExploreConfig)
    assert isinstance(synthesis, SynthesizeConfig)
    problems = load_problems(stage.problems)[:count]
    worker = ExploreWorker(stage)
    await worker.start()
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for arm, changes in ARMS.items():
            how = {**stage.search.model_dump(), "rounds": 10_000, "token_budget": tokens, "enough_good": 0, **changes}
            how["patience"] = 10_000  # equal tokens: no strategy may leave some because it only repeats itself
            worker.config = stage.model_copy(update={"seed": seed, "search": build(SearchConfig, how)})
            facts, trees = await search(worker, problems, stage.compute.in_flight)
            rows += [{"arm": arm, "seed": seed, **row} for row in _by_tree(trees, tokens)]
            chains = await _chains(trees, synthesis)
            rows.append({"arm": arm, "seed": seed, **_of_all(trees, tokens), **chains, "rate": facts["rate"]})
            print({name: value for name, value in rows[-1].items() if name != "curve"}, file=sys.stderr, flush=True)
    await worker.close()
    figures, intervals = summarise(rows)
    figures |= {"problems": count, "tokens_per_problem": tokens, "model": stage.engine.model}
    print(results.write("bench/results/strategies", figures, rows, intervals=intervals, seeds=range(seeds)))


def summarise(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Means over seeds, and differences from best_of_n on the same problems with 95% intervals."""
    figures: dict[str, Any] = {}
    intervals: dict[str, list[float]] = {}
    keys = ("coverage", "majority", "both", "tokens_per_correct", "tokens_per_verified_chain", "tokens_per_crps_chain")
    for arm in ARMS:
        whole = [row for row in rows if row["arm"] == arm and "curve" in row]
        for key in keys:
            known = [row[key] for row in whole if row[key] is not None]
            figures[f"{key}_{arm}"] = statistics.fmean(known) if known else None
    for key in ("coverage", "majority", "both"):
        base = _by_problem(rows, "best_of_n", key)
        for arm in ARMS:
            if arm == "best_of_n":
                continue
            name = f"{key}_{arm}_minus_best_of_n"
            changes = [value - base[problem] for problem, value in _by_problem(rows, arm, key).items()]
            figures[name] = statistics.fmean(changes)
            intervals[name] = list(bootstrap(changes, 10_000, 0))
    return figures, intervals


def _by_problem(rows: Sequence[dict[str, Any]], arm: str, key: str) -> dict[str, float]:
    """The mean over seeds of each problem."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["arm"] == arm and "problem" in row:
            found.setdefault(row["problem"], []).append(float(row[key]))
    return {problem: statistics.fmean(values) for problem, values in found.items()}


def _by_tree(trees: Sequence[Tree], tokens: int) -> list[dict[str, Any]]:
    rows = []
    for tree in trees:
        point = _point([tree], tokens)
        rows.append(
            {
                "problem": tree.problem_id,
                "coverage": bool(point.coverage),
                "majority": bool(point.majority),
                "both": bool(point.both),
                "spent": point.spent,
            }
        )
    return rows


def _of_all(trees: Sequence[Tree], tokens: int) -> dict[str, Any]:
    point, totals = _point(trees, tokens), Totals()
    for tree in trees:
        totals.add(tree)
    curve = Curve([tokens * step // 8 for step in range(1, 9)])
    for tree in trees:
        curve.add(tree)
    return {
        "coverage": point.coverage,
        "majority": point.majority,
        "both": point.both,
        "tokens_per_correct": point.spent / point.correct if point.correct else None,
        "distinct_share": totals.figures()["distinct_share"],
        "curve": [asdict(found) for found in curve.points()],
    }


def _point(trees: Sequence[Tree], tokens: int) -> Any:
    curve = Curve([tokens])
    for tree in trees:
        curve.add(tree)
    return curve.points()[0]


async def _chains(trees: Sequence[Tree], config: SynthesizeConfig) -> dict[str, Any]:
    """Generated tokens of the search for a chain that passes every check: any correct path, and one by contrast."""
    spent = sum(tree.generated_tokens for tree in trees)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.write_table("data/part-00000.parquet", to_table(Tree, trees))
        payload = {"questions": [[["data/part-00000.parquet", row]] for row in range(len(trees))]}
        for name, method, pair in (("verified", "rejection", "best_path"), ("crps", "crps", "skip")):
            how = config.model_copy(update={"trees": folder, "method": method, "without_pair": pair})
            worker = SynthesizeWorker(how, [])
            await worker.start()
            _, summary = await worker.run(Unit(method, payload), store)
            await worker.close()
            selected = summary["counts"].get("unique", 0)
            found |= {f"{name}_chains": selected, f"tokens_per_{name}_chain": spent / selected if selected else None}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="*", help="preset and overrides of a pipeline")
    parser.add_argument("--problems", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=400, help="generated tokens a problem")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    asyncio.run(main(options.config or [PRESET], options.problems, options.tokens, options.seeds))
