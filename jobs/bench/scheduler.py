"""What the scheduling of a search costs: many explorer actors on one machine, and one very large tree.

    python -m jobs.bench.scheduler [--actors 1 32] [--latency SECONDS] [--waves N]

The engine is simulated: it answers every request after a fixed latency, as a GPU would that many requests share. So
whatever keeps n actors from n times the requests of one is the scheduler: Ray Data, snapshots, trees, verification.
Requests are counted while every actor is at work: from when the last one has its processes running (it has asked for
two rounds of its trees) to the last request of the first to end. How long 32 actors take to start on the machine's few
cores is reported beside it.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import results
from raylm.config import build
from raylm.search import explore
from raylm.search.config import ExploreConfig
from raylm.search.tree import OPEN, STOP, Limits, SearchTree, Step
from raylm.units import ensure_ray

IN_FLIGHT, ROUNDS = 8, 4
LATENCY, WAVES = 8.0, 5
SIZES = (1_000, 10_000, 100_000)
BRANCHES, DEPTH = 8, 16
OPERATIONS = 2_000


def main(actors: list[int], latency: float, waves: int) -> None:
    """Measure, and write bench/results/scheduler.json."""
    figures, pools = measure(actors, latency, waves)
    trees = [_tree(size) for size in SIZES]
    figures |= {f"microseconds_per_expansion_{row['nodes']}": row["microseconds"] for row in trees}
    figures |= {
        "bytes_per_node": trees[-1]["bytes_per_node"],
        "slowdown_100k_vs_1k": trees[-1]["microseconds"] / trees[0]["microseconds"],
    }
    print(results.write("bench/results/scheduler", figures, [*pools, *trees]))


def measure(
    actors: Sequence[int], latency: float = LATENCY, waves: int = WAVES
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Efficiency of pools of actors relative to the first one, and the row of each."""
    ensure_ray()
    pools = [_pool(count, latency, waves) for count in actors]
    first = pools[0]["requests_per_second"] / actors[0]
    for row in pools:
        row["efficiency"] = row["requests_per_second"] / (row["actors"] * first)
        print(row, file=sys.stderr, flush=True)
    figures: dict[str, Any] = {f"scheduler_efficiency_{row['actors']}": row["efficiency"] for row in pools}
    return figures | {"scheduler_latency_seconds": latency, "scheduler_trees_in_flight": IN_FLIGHT}, pools


def _pool(actors: int, latency: float, waves: int) -> dict[str, Any]:
    """Requests a second of a pool of explorer actors while all of them are at work."""
    with tempfile.TemporaryDirectory(prefix="raylm-scheduler-") as folder:
        log = Path(folder) / "requests"
        script = {"latency": latency}
        config = build(
            ExploreConfig,
            {
                "out": f"{folder}/explore",
                "problems": [{"name": "chain_sum", "limit": actors * IN_FLIGHT * waves, "params": {"max_terms": 3}}],
                "engine": {"kind": "scripted", "model": "micro", "script": script, "request_log": str(log)},
                "search": {"rounds": ROUNDS, "samples": 4, "enough_good": 0},
                "compute": {"min_workers": actors, "max_workers": actors, "cpus": 0.01, "in_flight": IN_FLIGHT},
            },
        )
        began = time.time()
        explore.run(config)
        times: dict[int, list[float]] = collections.defaultdict(list)
        for line in log.read_text().splitlines():
            row = json.loads(line)
            times[row["pid"]].append(row["time"])
    assert len(times) == actors, f"{len(times)} of {actors} actors worked"
    start, end = max(sorted(each)[2 * IN_FLIGHT] for each in times.values()), min(map(max, times.values()))
    counted = sum(start <= at < end for each in times.values() for at in each)
    return {
        "actors": actors,
        "seconds_to_first_request": min(map(min, times.values())) - began,
        "seconds_to_all_at_work": start - began,
        "window_seconds": end - start,
        "requests": counted,
        "requests_per_second": counted / (end - start),
        "ideal_requests_per_second": actors * IN_FLIGHT / latency,
    }


def _tree(size: int) -> dict[str, Any]:
    """Time of selecting, inserting and backing up in a tree of `size` nodes, and the memory of a node."""
    draw = random.Random(size)
    tracemalloc.start()
    # The exploration constant is large, so that the tree grows everywhere and not down a single path.
    tree = SearchTree(Limits(max_depth=DEPTH, max_tokens=10**9, c=20.0, widen=BRANCHES, widen_power=0.0))
    while len(tree) < size:
        _expand(tree, draw)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    gc.collect()
    start = time.perf_counter()
    for _ in range(OPERATIONS):
        _expand(tree, draw)
    seconds = time.perf_counter() - start
    depth = float(tree.column("depth")[tree.column("end") == OPEN].mean())
    return {
        "nodes": size,
        "microseconds": 1e6 * seconds / OPERATIONS,
        "bytes_per_node": memory / len(tree),
        "mean_depth": depth,
    }


def _expand(tree: SearchTree, draw: random.Random) -> None:
    """One expansion of one completion, two steps deep."""
    leaf = tree.select()
    names = [draw.randrange(10**6) for _ in range(2)]
    steps = [Step((name, name + 1), f"step {name}\n", -1.0) for name in names]
    terminal, _ = tree.insert(leaf, steps, STOP, 0)
    tree.release(leaf)
    tree.backup(terminal, draw.random())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--latency", type=float, default=LATENCY, help="seconds that a request takes")
    parser.add_argument("--waves", type=int, default=WAVES, help="trees of each place in an actor")
    options = parser.parse_args()
    main(options.actors, options.latency, options.waves)
