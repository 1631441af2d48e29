"""The micro tier's world: sums of a few numbers, and a small Llama that has learned them halfway.

The model is pretrained from nothing on worked sums, until it is right about half of the time: it knows the form, and
errs the way a half-trained model does. Questions of training, search, and both test suites never meet.
"""

from __future__ import annotations

import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raylm.llm import micro, models
from raylm.records import Problem
from raylm.train.config import FinetuneConfig
from raylm.train.data import Plan, encode
from raylm.train.loop import TorchEngine
from raylm.train.worker import Trainer


@dataclass(frozen=True, slots=True)
class World:
    """Sizes of the micro tier."""

    terms: tuple[int, int] = (3, 4)
    longer: tuple[int, int] = (5, 5)
    """Terms of the out-of-domain sums."""
    largest: int = 9
    hidden: int = 96
    layers: int = 4
    steps: int = 450
    batch: int = 64
    lr: float = 1.5e-3
    pretraining: int = 20_000
    """Worked sums of the pretraining."""


def problems(world: World, count: int, seed: int, terms: tuple[int, int], avoid: set[str]) -> list[Problem]:
    """Distinct sums whose questions are not in `avoid`, to which they are added."""
    draw = random.Random(seed)
    found: list[Problem] = []
    while len(found) < count:
        numbers = [draw.randint(1, world.largest) for _ in range(draw.randint(*terms))]
        signs = [draw.choice("+-") for _ in numbers[1:]]
        question = f"{numbers[0]}" + "".join(f" {s} {n}" for s, n in zip(signs, numbers[1:], strict=True))
        if question in avoid:
            continue
        avoid.add(question)
        answer = sum(n if s == "+" else -n for s, n in zip(["+", *signs], numbers, strict=True))
        found.append(Problem(f"s{seed}-{len(found)}", "sums", question, str(answer), "number"))
    return found


def worked(problem: Problem) -> str:
    """The solution, one operation a line."""
    words = problem.question.split()
    total, lines = int(words[0]), []
    for sign, number in zip(words[1::2], words[2::2], strict=True):
        result = total + int(number) if sign == "+" else total - int(number)
        lines.append(f"{total} {sign} {number} = {result}")
        total = result
    return "\n".join([*lines, f"Answer: {total}"])


def rows(items: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """(question, response) pairs as chats."""
    return [
        {"id": str(n), "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for n, (q, a) in enumerate(items)
    ]


def train(model: Any, tokenizer: Any, data: list[dict[str, Any]], config: FinetuneConfig, note: str = "") -> float:
    """Train in place with the trainer's own steps; the mean loss of the last tenth."""
    samples = encode(data, tokenizer, config)
    plan = Plan(len(samples), config)
    trainer = Trainer(config, TorchEngine(model, config), samples, plan, tokenizer.pad_token_id, ranks=(0, 1))
    losses = []
    for step in range(plan.steps):
        losses.append(trainer.step(step)["loss"])
        if note and (step + 1) % 100 == 0:
            print(f"{note}: step {step + 1} of {plan.steps}, loss {losses[-1]:.3f}", file=sys.stderr, flush=True)
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def pretrain(world: World, path: Path, seed: int, avoid: set[str]) -> None:
    """Write the half-trained model to `path`, unless it is there."""
    if (path / "config.json").exists():
        return
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    micro.build(partial)
    tokenizer = models.load_tokenizer(partial)
    settings = LlamaConfig.from_pretrained(partial)
    settings.hidden_size, settings.intermediate_size = world.hidden, 3 * world.hidden
    settings.num_hidden_layers, settings.num_attention_heads, settings.num_key_value_heads = world.layers, 4, 4
    settings.head_dim = world.hidden // 4
    torch.manual_seed(seed)
    model = LlamaForCausalLM(settings).float()
    own = problems(world, world.pretraining, 1_000 + seed, (2, world.terms[1]), set(avoid))
    config = FinetuneConfig(
        epochs=1e9, max_steps=world.steps, batch_size=world.batch, micro_batch=world.batch, lr=world.lr, workers=1,
        engine="torch", beta2=0.98, weight_decay=0.1, seed=seed, isolation={"enabled": False},
    )  # fmt: skip
    train(model, tokenizer, rows([(item.question, worked(item)) for item in own]), config, "pretraining")
    model.save_pretrained(partial)
    models.check(partial)
    partial.rename(path)
