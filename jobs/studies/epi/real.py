"""Unlike tasks out of real sets, for SmolLM2-135M; the folder of the sets is $RAYLM_DATA."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Pair = tuple[str, str]


def _solution(row: dict[str, Any]) -> Pair:
    """A worked solution without the calculator's marks."""
    return row["question"], re.sub(r"<<[^>]*>>", "", row["solution"]).split("\n####")[0] + f"\n#### {row['answer']}"


def _chat(row: dict[str, Any]) -> Pair:
    return row["prompt"], row["response"]


SOURCES: dict[str, tuple[str, Callable[[dict[str, Any]], Pair]]] = {
    "questions": ("natural_instructions_v1/qasc_question_generation.train", _chat),
    "maths": ("gsm8k/train", _solution),
    "sql": ("wikisql/train", _chat),
    "restaurants": ("e2e_nlg/dev", _chat),
    "intents": ("banking77/train", lambda row: (f"Label this: {row['text']}", row["label"].replace("_", " "))),
}
"""Task to its file and to question and answer of a row."""
BEFORE = "questions"
ORDERS = (("maths", "sql", "restaurants", "intents"), ("intents", "restaurants", "sql", "maths"))


def write(folder: Path, name: str, seed: int, sizes: tuple[int, int]) -> dict[str, str]:
    """Files of a task's chats: to tune on, and to look at. A seed draws its own, and no question is in both."""
    paths = {part: folder / f"{name}-{seed}-{part}.jsonl" for part in ("train", "held")}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        file, read = SOURCES[name]
        with gzip.open(Path(os.environ["RAYLM_DATA"], f"{file}.jsonl.gz"), "rt") as source:
            pairs = list(dict(read(json.loads(line)) for line in source).items())
        pairs = [pair for pair in pairs if len(" ".join(pair)) <= 500]
        random.Random(f"{name}-{seed}").shuffle(pairs)
        rows = [
            {"id": str(n), "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for n, (q, a) in enumerate(pairs[: sum(sizes)])
        ]
        for path, part in zip(paths.values(), (rows[: sizes[0]], rows[sizes[0] :]), strict=True):
            path.write_text("".join(json.dumps(row) + "\n" for row in part))
    return {part: str(path) for part, path in paths.items()}
