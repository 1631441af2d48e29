"""Samples as the probes see them: a question, an answer, its normal form, and options beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from raylm.ilp.config import DiagnoseConfig, ProbeConfig
from raylm.records import Problem
from raylm.seeds import stable_seed
from raylm.tasks.answers import extract_answer, final_answers, normalize_text, parse_number
from raylm.train.config import FinetuneConfig
from raylm.train.data import read_all

Check = Literal["answer", "exact", "rouge"]


@dataclass(frozen=True, slots=True)
class Item:
    """One sample."""

    id: str
    messages: list[dict[str, str]]
    """The chat before the answer."""
    answer: str
    """The assistant's last turn."""
    check: Check
    """How a response is compared with it."""
    normal: str
    """Normal form of the answer; empty where it has none (long free text)."""
    task: str = ""
    prerequisites: tuple[tuple[str, str], ...] = field(default=())
    """Questions, with their answers, that one must be able to answer first."""

    @property
    def question(self) -> str:
        """All turns before the answer, as text."""
        return "\n".join(turn["content"] for turn in self.messages)

    def problem(self) -> Problem:
        """The sample for the verifier."""
        return Problem(self.id, self.task or "sample", self.question, extract_answer(self.answer), checker="math")

    def kind(self) -> str:
        """What an answer is, so that options are alike: its check, and whether it is a number."""
        return f"{self.check}{'-number' if parse_number(self.normal or '?') is not None else ''}"


def read(config: DiagnoseConfig) -> tuple[list[dict[str, Any]], str]:
    """The rows of the samples, as training read them, and their digest.

    Raises:
        UserError: as `raylm.train.data.read_all`.
    """
    return read_all(FinetuneConfig(chains=config.chains, tasks=config.tasks, max_length=config.max_length))


def make(rows: Sequence[Mapping[str, Any]], config: ProbeConfig) -> list[Item]:
    """Items of chat rows."""
    return [_item(row, config) for row in rows]


def screen(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """All items, or `count` of them drawn by the seed, in their order."""
    if not count or count >= len(items):
        return list(items)
    chosen = np.random.default_rng([seed, 5]).choice(len(items), count, replace=False)
    return [items[place] for place in sorted(chosen)]


def normal_form(text: str, check: Check) -> str:
    """What two equal answers share: their number, or their text without spelling differences; empty for long text."""
    if check == "rouge":
        return ""
    answer = extract_answer(text) if check == "answer" else text
    number = parse_number(answer)
    return str(number) if number is not None else normalize_text(answer)


def distractors(
    items: Sequence[Item], pool: Sequence[Item], near: Mapping[str, Sequence[int]], lengths: Mapping[str, int],
    config: DiagnoseConfig,
) -> dict[str, list[str]]:  # fmt: skip
    """Wrong answers for each item, out of the answers to the questions nearest to it.

    Near questions have answers of the same type, so that a model which only knows what kind of thing is asked for does
    not choose rightly. Among those of the same kind, the nearest in length are taken, so that length does not give the
    right one away (a trap on the method page). What near questions lack, the other samples give.

    Args:
        items: that need options.
        pool: samples whose answers may serve.
        near: places in the pool of an item's nearest questions, nearest first.
        lengths: tokens of each answer text.
        config: for the number and the seed.
    """
    groups: dict[str, dict[str, str]] = {}
    for item in pool:
        groups.setdefault(item.kind(), {}).setdefault(item.normal or item.answer, item.answer)
    found = {}
    for item in items:
        wanted, own = config.probe.distractors, item.normal or item.answer
        close = {each.normal or each.answer: each.answer for place in near[item.id]
                 if (each := pool[place]).kind() == item.kind()}  # fmt: skip
        draw = np.random.default_rng(stable_seed(config.seed, "distractors", item.id))
        chosen: dict[str, str] = {}
        for group in (dict(list(close.items())[: 3 * wanted]), groups.get(item.kind(), {})):
            if len(chosen) == wanted:
                break
            left = {key: answer for key, answer in group.items() if key != own and key not in chosen}
            gaps = np.array([abs(lengths[answer] - lengths[item.answer]) for answer in left.values()], dtype=float)
            ranked = np.lexsort((draw.random(len(left)), gaps))[: wanted - len(chosen)]
            chosen |= {key: left[key] for key in [list(left)[place] for place in ranked]}
        found[item.id] = list(chosen.values())
    return found


def choices(item: Item, count: int, config: DiagnoseConfig) -> list[list[int]]:
    """Which of an item's `count` distractors each multiple choice shows."""
    draw = np.random.default_rng(stable_seed(config.seed, "choices", item.id))
    size = min(config.probe.options - 1, count)
    return [sorted(int(place) for place in draw.choice(count, size, replace=False)) if size else []
            for _ in range(config.probe.evaluations)]  # fmt: skip


def chance_floor(options: int, evaluations: int, below: float) -> float:
    """Share of samples that P1 calls unlearned when the answers are guessed.

    The chance of fewer than `below * evaluations` hits at 1 / options each; 24% for 4 options, 5 choices and 0.2.
    """
    few = math.ceil(below * evaluations - 1e-9)
    hit = 1 / options
    return sum(math.comb(evaluations, k) * hit**k * (1 - hit) ** (evaluations - k) for k in range(few))


def _item(row: Mapping[str, Any], config: ProbeConfig) -> Item:
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
    answer, check = messages[-1]["content"], config.check
    if check == "auto":
        short = len(answer.split()) <= config.short
        check = "answer" if final_answers(answer) else "exact" if short else "rouge"
    needed = tuple((str(each["question"]), str(each["answer"])) for each in row.get("prerequisites") or ())
    return Item(
        id=row["id"],
        messages=messages[:-1],
        answer=answer,
        check=check,
        normal=normal_form(answer, check),
        task=row.get("task_name", ""),
        prerequisites=needed,
    )
