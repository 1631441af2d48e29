"""Rows of JSONL and Parquet files, each with the place that messages name."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from typing import Any

import pyarrow.parquet as pq

from raylm.errors import UserError
from raylm.storage import Store

Rows = list[tuple[str, dict[str, Any]]]
"""(place, row); a place is PATH:NUMBER, of a line or of a row of Parquet."""


def read_rows(field: str, path: str, what: str = "rows") -> tuple[Rows, str]:
    """All rows of a JSONL or Parquet file (`.gz` too), and the file's digest. Empty lines are passed over.

    Lines end at a line feed alone: JSON allows the other characters at which str.splitlines would cut inside a text.

    Args:
        field: of the config, for messages.
        what: the rows are, for messages.

    Raises:
        UserError: there is no such file, it is damaged, it holds no rows, or a line is no JSON object.
    """
    store, file = Store.of_file(path)
    if not store.exists(file):
        raise UserError(f"{field}={path}: no such file; give a JSONL or Parquet file of {what}")
    data = store.read_bytes(file)
    rows = _table(field, path, data) if ".parquet" in file else _lines(field, path, data)
    if not rows:
        raise UserError(f"{field}={path}: holds no {what}")
    return rows, hashlib.sha256(data).hexdigest()[:16]


def read_texts(field: str, path: str) -> list[str]:
    """The texts of documents, rows with `text`.

    Raises:
        UserError: as `read_rows`, or a row has no text.
    """
    found = []
    for place, row in read_rows(field, path, "documents")[0]:
        if not isinstance(row.get("text"), str) or not row["text"].strip():
            raise UserError(f"{field}: {place}: no field 'text' with a text")
        found.append(row["text"])
    return found


def lines_of(data: bytes) -> list[bytes]:
    """The lines of a text file, without what ends them."""
    return [line.removesuffix(b"\r") for line in data.removesuffix(b"\n").split(b"\n")] if data else []


def _table(field: str, path: str, data: bytes) -> Rows:
    try:
        table = pq.read_table(io.BytesIO(data))
    except (OSError, ValueError) as error:
        raise UserError(f"{field}={path}: not a Parquet file ({error})") from None
    return [(f"{path}:{number}", row) for number, row in enumerate(table.to_pylist(), start=1)]


def _lines(field: str, path: str, data: bytes) -> Rows:
    if path.endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{field}={path}: not a whole gzip file ({error}); copy it again") from None
    found = enumerate(lines_of(data), start=1)
    return [(f"{path}:{number}", _object(f"{path}:{number}", line)) for number, line in found if line.strip()]


def _object(place: str, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8") from None
    except ValueError as error:
        raise UserError(f"{place}: not valid JSON ({error}); mend or remove the line") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}: a {type(row).__name__}, not an object; mend or remove the line")
    return row
