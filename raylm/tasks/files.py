"""Problems from datasets: JSON lines, Parquet, and Hugging Face datasets, on any fsspec path or the hub."""

from __future__ import annotations

import difflib
import gzip
import itertools
import json
import math
import os
import posixpath
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raylm.errors import UserError
from raylm.records import Problem
from raylm.tasks.answers import gold_text, parse_number
from raylm.tasks.config import SourceConfig
from raylm.tasks.procedural import in_part

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

FORMATS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
_GLOB = re.compile(r"[*?\[]")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    """Place in the whole dataset, from 0."""
    place: str
    """File and line, for messages."""
    file: str
    fields: dict[str, Any]


def read(source: SourceConfig) -> list[Problem]:
    """The problems of a dataset.

    Raises:
        UserError: the path cannot be read, a row is malformed (names file and line), an id is used twice, or there are
            fewer rows than `offset` and `limit` ask for.
    """
    rows = _rows(source)
    if source.shuffle:
        shuffled = list(rows)
        random.Random(source.seed).shuffle(shuffled)
        rows = iter(shuffled)
    if source.part != "all":
        rows = (row for row in rows if in_part(_question(row, source), source.part))
    end = source.offset + source.limit if source.limit else None
    skipped = sum(1 for _ in itertools.islice(rows, source.offset))
    taken = list(itertools.islice(rows, source.limit or None))
    if not taken or (end and skipped + len(taken) < end):
        raise UserError(
            f"source {source.name}: {source.path} has {skipped + len(taken)} rows"
            + (f" in part {source.part}" if source.part != "all" else "")
            + (f", offset {source.offset} and limit {source.limit} ask for {end}" if end or source.offset else "")
            + "; check path, offset and limit"
        )
    problems = [_problem(row, source) for row in taken]
    _refuse_repeated(problems, taken, source)
    return problems


def _refuse_repeated(problems: list[Problem], rows: list[_Row], source: SourceConfig) -> None:
    first: dict[str, str] = {}
    repeated = []
    for problem, row in zip(problems, rows, strict=True):
        if problem.id in first:
            repeated.append(f"{row.fields[source.id_field]!r} at {row.place} and {first[problem.id]}")
        first.setdefault(problem.id, row.place)
    if repeated:
        raise UserError(
            f"source {source.name}: {len(repeated)} ids in {source.id_field!r} are used twice "
            f"(first: {'; '.join(repeated[:3])}); make them unique or set id_field to another column"
        )


def _problem(row: _Row, source: SourceConfig) -> Problem:
    question, answer = _question(row, source), _field(row, source.answer_field, source)
    checker = "math" if source.checker == "auto" else source.checker
    if checker == "number" and parse_number(gold_text(answer)) is None:
        raise UserError(
            f"{row.place}: field {source.answer_field!r} is no number ({answer[:60]!r}), which checker number needs; "
            f"set the checker of source {source.name} to math or exact"
        )
    metadata: dict[str, Any] = {"file": posixpath.basename(row.file), "row": row.number}
    if ":" in checker:
        used = (source.question_field, source.answer_field, source.id_field)
        metadata["fields"] = {key: value for key, value in row.fields.items() if key not in used}
    return Problem(
        id=f"{source.name}-{_id(row, source)}",
        task=source.name,
        question=question,
        answer=answer,
        checker=checker,
        metadata_json=json.dumps(metadata, sort_keys=True, default=str),
    )


def _id(row: _Row, source: SourceConfig) -> str:
    if source.id_field not in row.fields and "id_field" not in source.model_fields_set:
        return f"{row.number:06d}"
    value = row.fields.get(source.id_field)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise UserError(
            f"{row.place}: field {source.id_field!r} holds no id (it has {', '.join(sorted(row.fields))}); "
            f"give every row one or set id_field of source {source.name}"
        )
    return _whole(str(value).strip(), row, source.id_field)


def _question(row: _Row, source: SourceConfig) -> str:
    return _field(row, source.question_field, source, numbers=False)


def _field(row: _Row, name: str, source: SourceConfig, numbers: bool = True) -> str:
    if name not in row.fields:
        option = "answer_field" if numbers else "question_field"
        raise UserError(
            f"{row.place}: no field {name!r}; it has {', '.join(sorted(row.fields))}; "
            f"set {option} of source {source.name} to one of them"
        )
    value = row.fields[name]
    if numbers and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{row.place}: field {name!r} is {type(value).__name__}, not text; mend or remove the row")
    if not value.strip():
        raise UserError(f"{row.place}: field {name!r} is empty; mend or remove the row")
    return _whole(value, row, name)


def _whole(text: str, row: _Row, name: str) -> str:
    r"""A text that can be stored: JSON may spell half a character (\ud83d), which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise UserError(
            f"{row.place}: field {name!r} holds half a character ({half}); mend or remove the row"
        ) from None
    return text


def _rows(source: SourceConfig) -> Iterator[_Row]:
    path = _expand(source)
    numbers = itertools.count()
    for place, file, fields in _hub_rows(source, path) if _is_dataset(path) else _file_rows(source, path):
        yield _Row(next(numbers), place, file, fields)


def _expand(source: SourceConfig) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2)
        if not os.environ.get(name):
            raise UserError(
                f"source {source.name}: path {source.path!r} needs the environment variable {name}, which is not set; "
                f"export {name}=FOLDER"
            )
        return os.environ[name]

    return os.path.expanduser(re.sub(r"\$\{(\w+)\}|\$(\w+)", value, source.path))


def _is_dataset(path: str) -> bool:
    """Whether a path is for the `datasets` library: a directory, or an id on the hub."""
    if path.endswith(FORMATS) or _GLOB.search(path) or "://" in path:
        return False
    return os.path.isdir(path) or (
        bool(_HUB_ID.fullmatch(path)) and not path.startswith(".") and not os.path.exists(path)
    )


def _file_rows(source: SourceConfig, path: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise UserError(f"source {source.name}: {path}: {error} (pip install the package that it names)") from None
    except ValueError as error:
        raise UserError(f"source {source.name}: {path}: {error}") from None
    names = sorted(fs.glob(root)) if _GLOB.search(root) else [root]
    if not names or not all(fs.isfile(name) for name in names):
        raise UserError(_missing(fs, root, path, source))
    for name in names:
        if not name.endswith(FORMATS):
            raise UserError(f"source {source.name}: {name} is none of {', '.join(FORMATS)}; convert it")
        yield from _parquet_rows(fs, name) if name.endswith(".parquet") else _json_rows(fs, name)


def _missing(fs: AbstractFileSystem, root: str, path: str, source: SourceConfig) -> str:
    message = f"source {source.name}: no such file {path}"
    folder = posixpath.dirname(root)
    if not fs.isdir(folder):
        return f"{message}; there is no folder {folder} either"
    siblings = [posixpath.basename(item.rstrip("/")) for item in fs.ls(folder, detail=False)]
    close = difflib.get_close_matches(posixpath.basename(root), sorted(siblings), n=1, cutoff=0.4)
    if close:
        return f"{message}; did you mean {posixpath.join(folder, close[0])}?"
    return f"{message}; its folder holds {', '.join(sorted(siblings)[:5]) or 'nothing'}"


def _json_rows(fs: AbstractFileSystem, file: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    number = 0
    try:
        with fs.open(file, "rb") as raw, gzip.open(raw) if file.endswith(".gz") else raw as lines:
            for number, line in enumerate(lines, start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield f"{file}:{number}", file, _object(text, f"{file}:{number}")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}:{number}: not UTF-8 ({error.reason}); convert the file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{file}: damaged or no gzip ({error}), after line {number}; fetch it again") from None


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{place}: not valid JSON ({error.msg}, column {error.colno}); mend or remove the line"
        ) from None
    except RecursionError:
        raise UserError(f"{place}: JSON nested too deeply; mend or remove the line") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}: a line holds one JSON object, not a {type(row).__name__}; write one object a line")
    return row


def _parquet_rows(fs: AbstractFileSystem, file: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with fs.open(file, "rb") as handle:
            for batch in pq.ParquetFile(handle).iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}, row {number}", file, row
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{file}: not readable as Parquet ({str(error).splitlines()[0]}); fetch or write it again"
        ) from None


def _hub_rows(source: SourceConfig, path: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    import datasets

    saved = any(os.path.exists(os.path.join(path, name)) for name in ("state.json", "dataset_dict.json"))
    try:
        if saved:
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path, source.subset or None, split=source.split)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"source {source.name}: {path!r} is no file and cannot be read as a Hugging Face dataset with subset "
            f"{source.subset!r} and split {source.split!r}: {reason}"
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        if source.split not in loaded:
            raise UserError(
                f"source {source.name}: {path} has no split {source.split!r}; it has {', '.join(sorted(loaded))}"
            )
        loaded = loaded[source.split]
    for number, row in enumerate(loaded):
        yield f"{path}[{source.split}], row {number + 1}", path, dict(row)
