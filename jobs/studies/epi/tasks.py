"""Unlike tasks of a few tokens each, out of reasoning-gym's generators, for a model of 0.3 million parameters."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """One skill."""

    name: str
    dataset: str
    """Of reasoning-gym."""
    params: dict[str, Any]
    render: Callable[[dict[str, Any]], tuple[str, str]]
    """Question and answer, without the generator's instructions, from an item's metadata; no question skips it."""


def _digits(values: list[str]) -> str:
    return "".join(str(int(float(value))) for value in values)


TASKS = {
    task.name: task
    for task in (
        Task(
            "sums", "basic_arithmetic",
            {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 1, "operators": ["+"],
             "allow_parentheses": False, "allow_negation": False},
            lambda item: (item["expression"].replace(" ", ""), str(sum(map(int, item["expression"].split(" + "))))),
        ),
        Task(
            "reverse", "spell_backward", {"min_word_len": 3, "max_word_len": 5},
            lambda item: (f"reverse {item['word'].lower()}", item["word"].lower()[::-1]),
        ),
        Task(
            "sort", "number_sorting",
            {"min_numbers": 4, "max_numbers": 5, "min_value": 0, "max_value": 9, "min_decimals": 0, "max_decimals": 0},
            lambda item: (f"{item['direction'][:3]} {_digits(item['original_numbers'])}",
                          _digits(item["sorted_numbers"])),
        ),
        Task(
            "bases", "base_conversion", {"min_base": 2, "max_base": 4, "min_value": 1, "max_value": 4000},
            lambda item: (
                f"{item['source_base']}to{item['target_base']} {item['source_repr']}"
                if 3 not in (item["source_base"], item["target_base"]) else "",
                item["target_repr"],
            ),
        ),
        Task(
            "filter", "number_filtering",
            {"min_numbers": 3, "max_numbers": 4, "min_value": 0, "max_value": 9, "min_decimals": 0, "max_decimals": 0},
            lambda item: (
                f"{item['operation'].replace('_', ' ')} {_digits([item['filter_value']])} "
                f"{_digits(item['original_numbers'])}",
                _digits(item["result"]) or "none",
            ),
        ),
    )
}  # fmt: skip
BEFORE = "sums"
"""What the model can do before it is tuned."""
ORDERS = (("reverse", "sort", "bases", "filter"), ("filter", "bases", "sort", "reverse"))


def items(name: str, count: int, seed: int) -> list[tuple[str, str]]:
    """Distinct (question, answer) pairs of a task."""
    import reasoning_gym

    task = TASKS[name]
    data = reasoning_gym.create_dataset(task.dataset, size=20 * count, seed=seed, **task.params)
    found: dict[str, str] = {}
    for place in range(20 * count):
        question, answer = task.render(data[place]["metadata"])
        if question and len(question) <= 40:
            found.setdefault(question, answer)
        if len(found) == count:
            return list(found.items())
    raise ValueError(f"{name}: only {len(found)} distinct items of {count}")


PARTS = ("general", "train", "held")


def write(folder: Path, name: str, seed: int, sizes: tuple[int, int, int]) -> dict[str, str]:
    """Files of a task's chats, which share no question: to pretrain on, to tune on, and to look at."""
    paths = {part: folder / f"{name}-{seed}-{part}.jsonl" for part in PARTS}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        pairs = items(name, sum(sizes), 1_000 * seed + list(TASKS).index(name))
        random.Random(seed).shuffle(pairs)
        start = 0
        for path, size in zip(paths.values(), sizes, strict=True):
            part = pairs[start : start + size]
            path.write_text("".join(json.dumps(_row(number, *pair)) + "\n" for number, pair in enumerate(part)))
            start += size
    return {part: str(path) for part, path in paths.items()}


def _row(number: int, question: str, answer: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": str(number), "messages": turns}
