"""How much of an engine's throughput does tree search keep?

    python -m jobs.bench.search [config.yaml] [key=value ...] [--problems N] [--repeats N] [--serial N] [--actors 1 32]

The explore stage of a pipeline preset grows its trees on one engine in this process (no Ray; snapshots and verification
included). The yardstick is one flat batch: the same engine samples as many completions of each question, from the same
prompts, all requests at once. Both are repeated alternately; `saturation` is the ratio of their tokens per second. How
pools of actors scale on a simulated engine is measured first, as jobs.bench.scheduler does it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray

from jobs import results
from jobs.bench import scheduler
from raylm.config import load
from raylm.llm.chat import prompt_ids
from raylm.llm.protocol import Sampling
from raylm.pipeline.config import PipelineConfig
from raylm.records import Tree, from_table
from raylm.search.config import ExploreConfig
from raylm.search.explore import ExploreWorker
from raylm.storage import Store
from raylm.tasks.sources import load_problems
from raylm.units import Unit

PRESET = "jobs/configs/quickstart.yaml"


def main(config: Sequence[str], count: int, repeats: int, serial: int, *, actors: Sequence[int]) -> None:
    """Measure, and write bench/results/search.json, or search_vllm.json where that is the engine asked for."""
    scaling, pools = scheduler.measure(actors) if actors else ({}, [])
    ray.shutdown()
    figures, intervals, rows = asyncio.run(_measure(config, count, repeats, serial))
    figures |= scaling
    name = "bench/results/search_vllm" if figures["engine"] == "vllm" else "bench/results/search"
    print(results.write(name, figures, [*pools, *rows], intervals=intervals, seeds=range(repeats)))


async def _measure(
    config: Sequence[str], count: int, repeats: int, serial: int
) -> tuple[dict[str, Any], dict[str, list[float]], list[dict[str, Any]]]:
    """Figures, their intervals, and a row a repeat."""
    stage = load(PipelineConfig, config).stage_configs()["explore"]
    assert isinstance(stage, ExploreConfig)
    problems = load_problems(stage.problems)[:count]
    worker = ExploreWorker(stage)
    await worker.start()
    assert worker.engine is not None
    # Neither side starts with cold caches, nor search with a verifier that is still loading.
    await flat(worker, problems, [1] * len(problems))
    await search(worker, problems[:1], 1)
    rows: list[dict[str, Any]] = []
    for repeat in range(repeats):
        worker.config = stage.model_copy(update={"seed": repeat})
        row: dict[str, Any] = {"repeat": repeat, "order": ["search", "flat"][:: 1 if repeat % 2 == 0 else -1]}
        for arm in row["order"]:
            if arm == "search":
                row["search"], trees = await search(worker, problems, stage.compute.in_flight)
            else:
                # What a tree draws is known only after it is grown; every other repeat takes the last one's counts.
                row["flat"] = await flat(worker, problems, [len(tree.draws) for tree in trees])
        row["serial"], _ = await search(worker, problems[:serial], 1)
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    await worker.close()
    figures, intervals = summarise(rows)
    figures |= {"problems": count, "in_flight": stage.compute.in_flight, "slots": stage.engine.max_in_flight}
    figures |= {"engine": rows[0]["search"]["engine"], "model": stage.engine.model}
    return figures, intervals, rows


def summarise(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Figures with their 95% intervals; ratios are geometric means over repeats."""
    ratios = {
        "saturation": [row["search"]["rate"] / row["flat"]["rate"] for row in rows],
        "saturation_by_cpu_time": [_by_cpu(row["search"]) / _by_cpu(row["flat"]) for row in rows],
        "speedup_vs_serial": [row["search"]["rate"] / row["serial"]["rate"] for row in rows],
    }
    total = {name: sum(row["search"][name] for row in rows) for name in ("generated", "prompt", "cached", "correct")}
    means, intervals = results.geometric_means(ratios)
    figures: dict[str, Any] = {**means}
    figures["prefix_hit_rate"] = total["cached"] / total["prompt"]
    figures["tokens_per_verified_chain"] = total["generated"] / total["correct"] if total["correct"] else None
    for arm in ("search", "flat", "serial"):
        figures[f"{arm}_tokens_per_second"] = statistics.fmean(row[arm]["rate"] for row in rows)
    for arm in ("search", "serial"):
        for what, unit in (("draws", "rollouts"), ("nodes", "nodes")):
            figures[f"{arm}_{unit}_per_second"] = statistics.fmean(row[arm][what] / row[arm]["seconds"] for row in rows)
    return figures, intervals


def _by_cpu(arm: dict[str, Any]) -> float:
    """Tokens a CPU second of this process: unlike wall-clock rates it does not see what else the machine runs."""
    return arm["generated"] / arm["cpu_seconds"]


async def search(worker: ExploreWorker, problems: Sequence[Any], in_flight: int) -> tuple[dict[str, Any], list[Tree]]:
    """Grow the trees of `problems`, `in_flight` at a time; what it took, and the trees."""
    gate = asyncio.Semaphore(in_flight)

    async def one(number: int, store: Store) -> tuple[Tree, dict[str, Any]]:
        async with gate:
            table, summary = await worker.run(Unit(str(number), {"problem": asdict(problems[number])}), store)
            return from_table(Tree, table)[0], summary

    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.monotonic(), time.process_time()
        grown = await asyncio.gather(*(one(number, Store(folder)) for number in range(len(problems))))
        seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    summaries = [summary for _, summary in grown]
    generated = sum(summary["generated_tokens"] for summary in summaries)
    facts = {
        "engine": summaries[0]["engine"],
        "seconds": seconds,
        "cpu_seconds": cpu,
        "generated": generated,
        "rate": generated / seconds,
        "prompt": sum(summary["prompt_tokens"] for summary in summaries),
        "cached": sum(summary["cached_tokens"] for summary in summaries),
        "correct": sum(summary["correct"] for summary in summaries),
        "rounds": sum(tree.rounds for tree, _ in grown),
        "nodes": sum(len(tree.nodes) for tree, _ in grown),
        "draws": sum(len(tree.draws) for tree, _ in grown),
    }
    return facts, [tree for tree, _ in grown]


async def flat(worker: ExploreWorker, problems: Sequence[Any], draws: Sequence[int]) -> dict[str, Any]:
    """Sample `draws[i]` whole responses to question i, all requests at once."""
    engine, config = worker.engine, worker.config
    assert engine is not None
    requests = [
        engine.generate(
            prompt_ids(engine.tokenizer, config.prompt.messages(problem.question)),
            Sampling(
                n=count,
                temperature=config.search.temperature,
                top_p=config.search.top_p,
                max_tokens=config.search.max_tokens,
                seed=1_000_003 * config.seed + number,
                logprobs=True,
            ),
        )
        for number, (problem, count) in enumerate(zip(problems, draws, strict=True))
    ]
    start, cpu = time.monotonic(), time.process_time()
    answers = await asyncio.gather(*requests)
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    generated = sum(answer.generated_tokens for answer in answers)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "generated": generated,
        "rate": generated / seconds,
        "samples": sum(draws),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="*", help="preset and overrides of a pipeline")
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serial", type=int, default=4, help="trees that are also grown one at a time")
    parser.add_argument("--actors", type=int, nargs="*", default=[1, 32], help="pools on the simulated engine, or none")
    options = parser.parse_args()
    main(options.config or [PRESET], options.problems, options.repeats, options.serial, actors=options.actors)
