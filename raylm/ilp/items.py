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


def distractors(items: Sequence[Item], pool: Sequence[Item], lengths: Mapping[str, int], config: DiagnoseConfig) -> dict[str, list[str]]:
    """Wrong answers for each item, out of the answers of the pool.

    They are of the item's kind and task and, of those, the nearest in length, so that neither gives the right one
    away. Trap on the method page: distractors that leak the gold by length.

    Args:
        items: that need options.
        pool: samples whose answers may serve.
        lengths: tokens of each answer text.
        config: for the number and the seed.
    """  # fmt: skip
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for item in pool:
        key = item.normal or item.answer
        for group in ((item.kind(), item.task), (item.kind(), "")):
            groups.setdefault(group, {}).setdefault(key, item.answer)
    found = {}
    for item in items:
        own, wanted = item.normal or item.answer, config.probe.distractors
        group = groups.get((item.kind(), item.task), {})
        if len(group) <= wanted:
            group = groups.get((item.kind(), ""), group)
        draw = np.random.default_rng(stable_seed(config.seed, "distractors", item.id))
        answers = [answer for key, answer in group.items() if key != own]
        size = lengths[item.answer]
        gaps = np.array([abs(lengths[answer] - size) for answer in answers], dtype=float)
        ranked = np.lexsort((draw.random(len(answers)), gaps))[:wanted]
        found[item.id] = [answers[place] for place in ranked]
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
