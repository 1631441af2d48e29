"""Documents for samples whose prerequisites the base model lacks: found in a corpus, or written and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raylm.ilp.config import DiagnoseConfig
from raylm.ilp.items import Item
from raylm.ilp.measure import Ask, units
from raylm.ilp.workers import AnswerWorker
from raylm.rows import read_texts
from raylm.tasks.answers import extract_answer, normalize_text

PROMPT = (
    "Write a short paragraph for an encyclopedia that teaches the facts behind this question and its answer. State the "
    "answer word for word.\n\nQuestion: {question}\nAnswer: {answer}"
)


def gather(
    items: Sequence[Item], config: DiagnoseConfig, encode: Callable[[list[str]], np.ndarray], ask: Ask, writer: str
) -> tuple[list[dict[str, Any]], int]:
    """Rows with `text`, `id` and `source`, and how many written documents failed their check.

    Args:
        items: samples that need documents.
        config: of the stage.
        encode: vectors of texts, of length 1.
        ask: runs workers.
        writer: directory of the model that writes; empty for none.

    Raises:
        UserError: the corpus cannot be read.
    """
    repair = config.repair
    if not items or not repair.documents_each:
        return [], 0
    if repair.corpus:
        return _found(items, repair.corpus, repair.documents_each, encode), 0
    if writer:
        rows, failed = _written(items, config, ask, writer)
        missing = {item.id for item in items} - {row["id"] for row in rows}
        return rows + [_plain(item) for item in items if item.id in missing], failed
    return [_plain(item) for item in items], 0


def _found(
    items: Sequence[Item], corpus: str, each: int, encode: Callable[[list[str]], np.ndarray]
) -> list[dict[str, Any]]:
    """The corpus documents nearest to each sample's question and answer; a document comes once."""
    import faiss

    plain = read_texts("repair.corpus", corpus)
    vectors = encode(plain)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    _, places = index.search(encode([f"{item.question} {item.answer}" for item in items]), min(each, len(plain)))
    chosen: dict[int, str] = {}
    for item, row in zip(items, places.tolist(), strict=True):
        for place in row:
            chosen.setdefault(place, item.id)
    return [{"id": name, "text": plain[place], "source": f"corpus:{place + 1}"} for place, name in chosen.items()]


def _written(items: Sequence[Item], config: DiagnoseConfig, ask: Ask, writer: str) -> tuple[list[dict[str, Any]], int]:
    """Sampled paragraphs that hold the sample's answer word for word."""
    asked = [
        Item(item.id, [{"role": "user", "content": PROMPT.format(question=item.question, answer=item.answer)}],
             item.answer, "rouge", "")
        for item in items
    ]  # fmt: skip
    arguments = {"config": config, "path": writer, "samples": config.repair.documents_each}
    answers = {item.id: normalize_text(extract_answer(item.answer) or item.answer) for item in items}
    rows, failed = [], 0
    for row in ask("diagnose: documents", units("documents", asked, config.unit), AnswerWorker, arguments):
        if row["finished"] and answers[row["id"]] in normalize_text(row["response"]):
            rows.append({"id": row["id"], "text": row["response"].strip(), "source": f"written:{writer}"})
        else:
            failed += 1
    return rows, failed


def _plain(item: Item) -> dict[str, Any]:
    return {"id": item.id, "text": f"{item.question}\n{item.answer}", "source": "sample"}
