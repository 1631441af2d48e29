"""How fast is a served reward model, beside the same model called directly and behind a bare FastAPI app?

    python -m jobs.bench.serve [--model DIR] [--clients N] [--seconds N] [--soak MINUTES] [--no-haproxy]

All in one run: direct batches and single calls; the bare app (uvicorn, one forward pass a request) and raylm's under
the same load, each with one replica that may use every core: the app by as many passes at once as its pool has threads,
ours, as the direct calls, by one pass with a thread a core. Latency of single requests and at half load. Then the soak,
with two replicas of a core each: scores, searches and upserts at 80% of what was reached, while one is killed each
minute; every answer is checked, and at the end every acknowledged document is looked for. Without --model it is
all-MiniLM-L6-v2 with five untrained branches.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs import results
from jobs.bench import load, serve_setup, serve_soak


def main(options: argparse.Namespace) -> None:
    """Measure, and write bench/results/serve.json."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = Path(options.model) if options.model else serve_setup.reward_model(folder)
        known, direct = _direct(model)
        rows: list[dict[str, Any]] = [{"what": "direct", **direct}]
        print(rows[-1], file=sys.stderr, flush=True)
        with serve_setup.bare(model) as address:
            rows += _measure("bare", address, known, options, "")
        with serve_setup.served("reward", folder, model, haproxy=not options.no_haproxy, cpus=os.cpu_count() or 1) as (
            address,
            token,
        ):
            rows += _measure("served", address, known, options, token)
            rows.append({"what": "fuzz", **serve_setup.fuzz(address, token)})
        figures = _figures(rows)
        if options.soak:
            rows += serve_soak.run(folder, model, known, options, figures["served_rate"])
            figures |= {key: rows[-1][key] for key in rows[-1] if key.startswith("soak_")}
        print(results.write("bench/results/serve", figures, rows))


def _direct(model: Path) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    """Scores of the pairs, and the rates and time of the model alone."""
    import torch

    from raylm.srm.model import RewardModel

    torch.set_num_threads(os.cpu_count() or 1)
    reward, pairs = RewardModel.load(model), load.pairs(128)
    known = {pair: score.score for pair, score in zip(pairs, reward.score_batch(pairs), strict=True)}
    start = time.monotonic()
    reward.score_batch(pairs)
    batched = len(pairs) / (time.monotonic() - start)
    singles = []
    for pair in pairs[:64]:
        start = time.monotonic()
        reward.score_batch([pair])
        singles.append(time.monotonic() - start)
    single = {"single_rate": 1 / statistics.fmean(singles), "single_p50_ms": 1000 * statistics.median(singles)}
    return known, {"batched_rate": batched, **single}


def _measure(what: str, address: str, known: Any, options: argparse.Namespace, token: str) -> list[dict[str, Any]]:
    found = []

    def under(name: str, clients: int, rate: float | None = None) -> float:
        outcome = asyncio.run(
            load.load(address, load.score_asks(known), clients=clients, seconds=options.seconds, rate=rate, token=token)
        )
        found.append({"what": what, "load": name, "clients": clients, **outcome.row()})
        print(found[-1], file=sys.stderr, flush=True)
        return outcome.rate

    under("warm-up", 4)
    full = under("saturation", options.clients)
    under("half", options.clients, full / 2)
    under("single", 1)
    return found


def _figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    by = {(row["what"], row.get("load")): row for row in rows}
    served, bare, direct = by["served", "saturation"], by["bare", "saturation"], by["direct", None]
    alone = by["served", "single"]["p50_ms"]
    return {
        "throughput_vs_bare_app": served["rate"] / bare["rate"],
        "throughput_vs_direct_batches": served["rate"] / direct["batched_rate"],
        "batches_vs_single_calls": direct["batched_rate"] / direct["single_rate"],
        "added_p50_ms": alone - direct["single_p50_ms"],
        "added_p50_ms_bare": by["bare", "single"]["p50_ms"] - direct["single_p50_ms"],
        "served_rate": served["rate"],
        "bare_rate": bare["rate"],
        "p50_ms_half_load": by["served", "half"]["p50_ms"],
        "p99_ms_half_load": by["served", "half"]["p99_ms"],
        "wrong_answers": sum(row.get("wrong", 0) for row in rows),
        "fuzz_requests": by["fuzz", None]["requests"],
        "fuzz_5xx": by["fuzz", None]["fuzz_5xx"],
        "fuzz_violations": by["fuzz", None]["violations"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of a reward model")
    parser.add_argument("--clients", type=int, default=64, help="more than a batch, so that the next one waits")
    parser.add_argument("--seconds", type=float, default=15, help="of each load")
    parser.add_argument("--soak", type=float, default=10, help="minutes; 0 leaves it out")
    parser.add_argument("--kill-every", type=float, default=60, help="seconds between kills in the soak")
    parser.add_argument("--no-haproxy", action="store_true", help="Serve's own proxy")
    main(parser.parse_args())
