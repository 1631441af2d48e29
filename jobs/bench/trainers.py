"""The training that benchmarks share: one model, chains, batches, and the trainer on them."""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch

from raylm.config import build
from raylm.llm import models
from raylm.train.config import FinetuneConfig
from raylm.train.data import Sample, encode, read_chains
from raylm.train.engines import make_engine
from raylm.train.model import build_model
from raylm.train.plan import Plan
from raylm.train.trainer import Trainer

WARM = 2
"""Steps before the clock starts: allocators and caches are cold."""
_SYSTEM = "Work one operation a line, then write Answer: N."


class Bench:
    """What all arms share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.threads = os.cpu_count() or 1
        torch.set_num_threads(self.threads)
        self.batch_size = options.batch_size
        self.model = str(models.resolve(options.model).path)
        self.tokenizer = models.load_tokenizer(self.model)
        self.steps = options.steps
        self.config = self.configured()
        rows = read_chains(options.chains)[0] if options.chains else _sums(160)
        self.samples = encode(rows, self.tokenizer, self.config)
        self.plan = Plan([sample.task for sample in self.samples], self.config)

    def configured(self, **changes: Any) -> FinetuneConfig:
        """The trainer's config with `changes`."""
        base = {
            "model": self.model, "workers": 1, "engine": "torch", "batch_size": self.batch_size, "micro_batch": 8,
            "lr": 2e-5, "epochs": 1000, "max_steps": WARM + self.steps, "max_length": 512,
            "isolation": {"enabled": False},
        }  # fmt: skip
        return build(FinetuneConfig, base | changes)

    def batches(self) -> list[list[Sample]]:
        """The samples of every step after the warm-up, in order."""
        return [[self.samples[index] for index in self.plan.batch_at(step)] for step in range(WARM, WARM + self.steps)]

    def tokens(self) -> int:
        """Tokens of the timed steps, prompts included, padding not."""
        return sum(len(sample.ids) for batch in self.batches() for sample in batch)


def trainer_of(bench: Bench, **changes: Any) -> Trainer:
    """The trainer on a fresh copy of the model, its config with `changes`."""
    config = bench.configured(**changes)
    engine = make_engine(build_model(bench.model, config), config, 1, bench.plan.steps)
    return Trainer(config, engine, bench.samples, bench.plan, bench.tokenizer.pad_token_id or 0, ranks=(0, 1))


def options_of(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """A parser with what `Bench` asks for."""
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--chains", default="", help="a synthesize artefact or file; default: written-out sums")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    return parser


def _sums(count: int) -> list[dict[str, Any]]:
    """Chats that add up numbers one operation a line."""
    rows = []
    for number in range(count):
        terms = [(number * 7 + place * 13) % 89 + 1 for place in range(2 + number % 4)]
        lines, total = [], terms[0]
        for term in terms[1:]:
            lines.append(f"{total} + {term} = {total + term}")
            total += term
        asked = {"role": "user", "content": f"What is {' + '.join(map(str, terms))}?"}
        answer = {"role": "assistant", "content": "\n".join([*lines, f"Answer: {total}"])}
        rows.append({"id": str(number), "messages": [{"role": "system", "content": _SYSTEM}, asked, answer]})
    return rows
