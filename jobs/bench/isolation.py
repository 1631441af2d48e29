"""What does isolation cost a training step, in time and memory?

    python -m jobs.bench.isolation [--model M] [--batch-size N] [--steps N] [--turns N]

Isolation works inside the optimizer's step and nowhere else. After each whole step of the trainer without it (all
weights in fp32, one thread), the optimizer takes turns on the same parameters and gradients: without a mask, with one,
and a mask is made anew. Seconds are the process's own CPU seconds, so that what else the machine does counts little.
Overheads are shares of the whole step before: what the mask adds to the optimizer's turn, over forward, backward and
optimizer. They halve when a batch has twice the tokens.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from jobs import results
from jobs.bench.trainers import WARM, Bench, options_of, trainer_of
from raylm.train.isolation import IsolatedAdamW, Isolation

K = 50
"""Steps between two masks, over which the cost of a new one is spread."""


def measure(bench: Bench, steps: int, turns: int) -> list[dict[str, Any]]:
    """A row a step: CPU seconds of the whole step, and of its turns (medians)."""
    torch.set_num_threads(1)
    trainer = trainer_of(bench, isolation={"warmup": 1, "source": "static"})
    optimizer = trainer.engine.optimizer
    isolation = optimizer.isolation
    assert isolation is not None
    params = [param for param, _ in trainer.engine.held]
    trainer.step(0)  # the first mask comes after it
    gradients = [torch.randn_like(param) for param in params]
    rows = []
    for step in range(WARM, WARM + steps):
        optimizer.isolation = None
        whole = _seconds(lambda step=step: trainer.step(step))
        taken: dict[str, list[float]] = {name: [] for name in _TURNS}
        for turn in range(turns * len(_TURNS)):
            name = list(_TURNS)[turn % len(_TURNS)]
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient.mul_(1.5)  # clipping has made it small
            taken[name].append(_seconds(lambda name=name: _TURNS[name](optimizer, isolation)))
        optimizer.zero_grad()
        rows.append({"step": step, "whole": whole, **{name: statistics.median(each) for name, each in taken.items()}})
        print(f"isolation: {rows[-1]}", file=sys.stderr, flush=True)
    return rows


def _plain(optimizer: IsolatedAdamW, isolation: Isolation) -> None:
    optimizer.isolation = None
    optimizer.step()


def _held(optimizer: IsolatedAdamW, isolation: Isolation) -> None:
    optimizer.isolation = isolation
    optimizer.step()


def _renewed(optimizer: IsolatedAdamW, isolation: Isolation) -> None:
    isolation.refresh()


_TURNS: dict[str, Callable[[IsolatedAdamW, Isolation], None]] = {"none": _plain, "held": _held, "refresh": _renewed}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def summarise(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Overheads as shares of a step, means with 95% intervals over the steps."""
    shares = {
        "epi_step_overhead": [(row["held"] - row["none"]) / row["whole"] for row in rows],
        "epi_amortised_overhead_k50": [(row["held"] - row["none"] + row["refresh"] / K) / row["whole"] for row in rows],
        "refresh_in_steps": [row["refresh"] / row["whole"] for row in rows],
        "epi_optimizer_overhead": [row["held"] / row["none"] - 1 for row in rows],
    }
    means, bounds = results.geometric_means({name: [1 + share for share in each] for name, each in shares.items()})
    intervals = {name: [bound - 1 for bound in each] for name, each in bounds.items()}
    return {name: mean - 1 for name, mean in means.items()}, intervals


def bytes_per_parameter(bench: Bench) -> float:
    """What isolation keeps beside the optimizer's moments: a mask and one importance."""
    trainer = trainer_of(bench, isolation={"warmup": 1, "refresh_every": 1})
    trainer.step(0)
    isolation = trainer.engine.optimizer.isolation
    assert isolation is not None
    found = isolation.bytes()
    return (found["importance"] + found["mask"]) / sum(param.numel() for param, _ in trainer.engine.held)


def main(options: argparse.Namespace) -> None:
    """Measure, and write bench/results/isolation.json."""
    bench = Bench(options)
    rows = measure(bench, options.steps, options.turns)
    figures, intervals = summarise(rows)
    tokens = [sum(len(sample.ids) for sample in batch) for batch in bench.batches()]
    figures |= {"epi_bytes_per_parameter": bytes_per_parameter(bench), "tokens_a_step": statistics.fmean(tokens)}
    figures |= {"batch_size": options.batch_size, "threads": 1, "model": options.model}
    print(results.write("bench/results/isolation", figures, rows, intervals=intervals, seeds=[bench.config.seed]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="of the optimizer after a step")
    main(options_of(parser).parse_args())
