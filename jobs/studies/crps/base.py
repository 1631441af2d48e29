"""The micro tier's world: sums of a few numbers, and a small Llama that has learned them halfway.

The model is pretrained from nothing on worked sums in several ways of writing, which differ in how often they come out
right: it knows the safe way beside others that it prefers, and errs as a half-trained model does. Questions of
training, search, and both test suites never meet.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import LlamaConfig, LlamaForCausalLM

from raylm.crps.synthesize import JOINTS
from raylm.llm import micro, models
from raylm.llm.chat import prompt_ids
from raylm.records import Problem
from raylm.tasks.answers import extract_answer
from raylm.tasks.config import PromptConfig
from raylm.train.config import FinetuneConfig
from raylm.train.data import encode
from raylm.train.engines import TorchEngine
from raylm.train.plan import Plan
from raylm.train.trainer import Trainer


@dataclass(frozen=True, slots=True)
class World:
    """Sizes of the micro tier."""

    terms: tuple[int, int] = (3, 4)
    longer: tuple[int, int] = (5, 5)
    """Terms of the out-of-domain sums: among those of the pretraining, never among those of the search."""
    largest: int = 9
    hidden: int = 96
    layers: int = 4
    steps: int = 1_500
    """Of pretraining, at most."""
    until: float = 0.35
    """Accuracy on sums of their own at which pretraining ends: half-trained models differ less from seed to seed by
    what they can do than by how long they have been trained."""
    batch: int = 64
    lr: float = 3e-3
    habits: tuple[tuple[str, float], ...] = (("guess", 0.2), ("leaps", 0.4), ("steps", 0.3), ("checks", 0.1))
    """Ways of writing a solution (see `worked`), and their shares of the pretraining: what a language model has read is
    not written in the way that works best for it."""
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


def worked(problem: Problem, habit: str = "steps", draw: random.Random | None = None) -> str:
    """A right solution in one of the ways in which the pretraining texts are written.

    `guess` answers at once, `leaps` does two operations a line, `steps` one, and `checks` also recomputes about half of
    them by the inverse operation.
    """
    words = problem.question.split()
    terms = list(zip(words[1::2], map(int, words[2::2]), strict=True))
    total, lines = int(words[0]), []
    stride = {"guess": len(terms), "leaps": 2}.get(habit, 1)
    for start in range(0, len(terms), stride):
        part = terms[start : start + stride]
        result = total + sum(number if sign == "+" else -number for sign, number in part)
        line = f"{total} " + " ".join(f"{sign} {number}" for sign, number in part) + f" = {result}"
        if habit == "checks" and draw is not None and draw.random() < 0.5:
            sign, number = part[0]
            line += f"{draw.choice(JOINTS)}{result} {'-' if sign == '+' else '+'} {number} = {total}"
        lines.append(line)
        total = result
    return "\n".join([*([] if habit == "guess" else lines), f"Answer: {total}"])


def rows(items: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """(question, response) pairs as chats."""
    return [
        {"id": str(n), "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for n, (q, a) in enumerate(items)
    ]


def train(
    model: Any,
    tokenizer: Any,
    data: list[dict[str, Any]],
    config: FinetuneConfig,
    enough: Callable[[int, float], bool] | None = None,
) -> float:
    """Train in place with the trainer's own steps; the mean loss of the last tenth.

    `enough(steps done, loss)` may end the training early.
    """
    samples = encode(data, tokenizer, config)
    plan = Plan([sample.task for sample in samples], config)
    engine = TorchEngine(model, config, plan.steps)
    trainer = Trainer(config, engine, samples, plan, tokenizer.pad_token_id, ranks=(0, 1))
    losses = []
    for step in range(plan.steps):
        losses.append(trainer.step(step)["loss"])
        if enough is not None and enough(step + 1, losses[-1]):
            break
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, items: Sequence[Problem]) -> float:
    """Share of the problems that the model answers correctly, greedily."""
    prompts = [prompt_ids(tokenizer, PromptConfig().messages(item.question)) for item in items]
    width = max(map(len, prompts))
    padding = tokenizer.pad_token_id
    ids = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model.eval()
    written = model.generate(ids, attention_mask=mask, max_new_tokens=80, do_sample=False, pad_token_id=padding)
    model.train()
    texts = tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
    return sum(extract_answer(text) == item.answer for text, item in zip(texts, items, strict=True)) / len(items)


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
    draw = random.Random(seed)
    names, weights = zip(*world.habits, strict=True)
    avoid = set(avoid)
    probe = problems(world, 200, 2_000 + seed, world.terms, avoid)
    own = problems(world, world.pretraining, 1_000 + seed, (2, world.longer[1]), avoid)
    config = FinetuneConfig(
        epochs=1e9, max_steps=world.steps, batch_size=world.batch, micro_batch=world.batch, lr=world.lr, workers=1,
        engine="torch", beta2=0.98, weight_decay=0.1, seed=seed, schedule="constant", isolation={"enabled": False},
    )  # fmt: skip
    texts = [(item.question, worked(item, draw.choices(names, weights)[0], draw)) for item in own]
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98))  # single steps come and go by ten points

    def enough(step: int, loss: float) -> bool:
        mean.update_parameters(model)
        found = accuracy(mean.module, tokenizer, probe) if step % 25 == 0 else 0.0
        if step % 25 == 0:
            print(f"pretraining: step {step}, loss {loss:.3f}, {found:.1%} right", file=sys.stderr, flush=True)
        return found >= world.until

    train(model, tokenizer, rows(texts), config, enough)
    mean.module.save_pretrained(partial)
    models.check(partial)
    partial.rename(path)
