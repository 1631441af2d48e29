"""Problems from reasoning-gym tasks and from datasets on disk or the hub."""

from __future__ import annotations

import difflib
import gzip
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from raylm.errors import UserError
from raylm.records import Problem
from raylm.tasks.answers import normalize_question
from raylm.tasks.config import SourceConfig

_DRAWS_PER_PROBLEM = 20


def load_problems(sources: Sequence[SourceConfig]) -> list[Problem]:
    """The problems of all sources, in their order.

    Raises:
        UserError: a source cannot be read, a row is malformed, or an id is used twice.
    """
    problems: list[Problem] = []
    for source in sources:
        loaded = list(_reasoning_gym(source) if source.kind == "reasoning_gym" else _dataset(source))
        if not loaded:
            raise UserError(f"source {source.name}: no problems; check its path, offset and limit")
        problems += loaded
    seen: set[str] = set()
    twice = sorted({item.id for item in problems if item.id in seen or seen.add(item.id)})  # type: ignore[func-returns-value]
    if twice:
        raise UserError(
            f"{len(twice)} problem ids are used twice (first: {', '.join(twice[:3])}); rename a source or mend the ids"
        )
    return problems


def overlap(train: Sequence[Problem], evaluation: Sequence[Problem]) -> list[Problem]:
    """The training problems whose question, case and punctuation aside, is an evaluation question."""
    held_out = {normalize_question(problem.question) for problem in evaluation}
    return [problem for problem in train if normalize_question(problem.question) in held_out]


def _reasoning_gym(source: SourceConfig) -> Iterator[Problem]:
    """Distinct problems of a procedural task; repeated questions are drawn again."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    task = source.task or source.name
    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=3)
        raise UserError(f"source {source.name}: no reasoning-gym task {task!r}; nearest: {', '.join(close) or 'none'}")
    wanted = source.offset + source.limit
    try:
        dataset = reasoning_gym.create_dataset(
            task, size=wanted * _DRAWS_PER_PROBLEM, seed=source.seed, **source.params
        )
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(f"source {source.name}: params do not fit task {task}: {error}") from None
    seen: set[str] = set()
    for index in range(wanted * _DRAWS_PER_PROBLEM):
        entry = dataset[index]
        key = normalize_question(entry["question"])
        if key in seen:
            continue
        seen.add(key)
        if len(seen) > source.offset:
            stored = {"task": task, "params": source.params, "entry": entry}
            yield Problem(
                id=f"{source.name}-s{source.seed}-{index:06d}",
                task=source.name,
                question=entry["question"],
                answer=str(entry["answer"]),
                checker="task" if source.checker == "auto" else source.checker,
                metadata_json=json.dumps(stored, sort_keys=True, default=str),
            )
        if len(seen) == wanted:
            return
    raise UserError(
        f"source {source.name}: {wanted * _DRAWS_PER_PROBLEM} draws gave only {len(seen)} distinct problems, {wanted} were "
        "asked for; widen params or lower limit"
    )


def _dataset(source: SourceConfig) -> Iterator[Problem]:
    rows = list(_rows(source))
    if source.shuffle:
        random.Random(source.seed).shuffle(rows)
    end = source.offset + source.limit if source.limit else None
    for place, row in rows[source.offset : end]:
        question, answer = (_field(row, name, place, source) for name in (source.question_field, source.answer_field))
        identity = row.get(source.id_field)
        yield Problem(
            id=f"{source.name}-{place.rpartition(':')[2] if identity is None else identity}",
            task=source.name,
            question=question,
            answer=answer,
            checker="math" if source.checker == "auto" else source.checker,
            metadata_json=json.dumps({"source": place}),
        )


def _field(row: dict[str, Any], name: str, place: str, source: SourceConfig) -> str:
    if name not in row:
        option = "question_field" if name == source.question_field else "answer_field"
        raise UserError(
            f"{place}: no field {name!r}; it has {', '.join(sorted(row))}; set {option} of source {source.name}"
        )
    text = row[name]
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        text = str(text)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place}: field {name!r} is empty or not text")
    return text


def _rows(source: SourceConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of every row, the place naming file and line."""
    path = _expand(source)
    if not re.search(r"\.(jsonl|json|jsonl\.gz|json\.gz|parquet)$", path):
        yield from _hub_rows(source, path)
        return
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}: {error} (install the filesystem's fsspec package)") from None
    files = sorted(fs.glob(root)) if any(sign in root for sign in "*?[") else [root]
    if not files or not all(fs.exists(file) for file in files):
        folder = os.path.dirname(root)
        names = [os.path.basename(item) for item in fs.ls(folder, detail=False)] if fs.isdir(folder) else []
        close = difflib.get_close_matches(os.path.basename(root), names, n=1)
        raise UserError(f"{path}: no such file" + (f"; did you mean {close[0]}?" if close else ""))
    for file in files:
        with fs.open(file, "rb") as handle:
            data = handle.read()
        yield from _parquet_rows(file, data) if file.endswith(".parquet") else _json_rows(file, data)


def _json_rows(file: str, data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    text = (gzip.decompress(data) if file.endswith(".gz") else data).decode("utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{file}:{number}: not valid JSON ({error.msg}, column {error.colno}); mend or remove the line"
            ) from None
        if not isinstance(row, dict):
            raise UserError(f"{file}:{number}: a line holds one JSON object, not a {type(row).__name__}")
        yield f"{file}:{number}", row


def _parquet_rows(file: str, data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: not readable as Parquet ({error})") from None
    for number, row in enumerate(rows, start=1):
        yield f"{file}:{number}", row


def _hub_rows(source: SourceConfig, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    try:
        loaded = (
            datasets.load_from_disk(path) if os.path.isdir(path) else datasets.load_dataset(path, split=source.split)
        )
    except Exception as error:  # the library raises many kinds; each means that the dataset cannot be had
        raise UserError(
            f"source {source.name}: dataset {path!r} cannot be read ({type(error).__name__}: {error})"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        loaded = loaded[source.split]
    for number, row in enumerate(loaded, start=1):
        yield f"{path}:{number}", dict(row)


def _expand(source: SourceConfig) -> str:
    path = os.path.expanduser(os.path.expandvars(source.path))
    unset = re.search(r"\$\{?(\w+)\}?", path)
    if unset:
        raise UserError(
            f"source {source.name}: path {source.path!r} needs the environment variable {unset.group(1)}; set it"
        )
    return path
