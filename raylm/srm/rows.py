"""Rows of JSONL and Parquet files, each with the place that messages name."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from typing import Any

import pyarrow.parquet as pq

from raylm.errors import UserError
from raylm.storage import Store

Rows = list[tuple[str, dict[str, Any]]]
"""(place, row)."""


def read(name: str, path: str) -> tuple[Rows, str]:
    """All rows of a JSONL or Parquet file (`.gz` too), and the file's digest.

    Args:
        name: of the config field, for messages.

    Raises:
        UserError: there is no such file, it holds no rows, or a line is no JSON object.
    """
    folder, _, file = path.rpartition("/")
    store = Store(folder or ("/" if path.startswith("/") else "."))
    if not store.exists(file):
        raise UserError(f"{name}={path}: no such file; give a JSONL or Parquet file")
    data = store.read_bytes(file)
    digest = hashlib.sha256(data).hexdigest()
    if ".parquet" in file:
        try:
            rows = [(f"{path}: row {n}", row) for n, row in enumerate(pq.read_table(io.BytesIO(data)).to_pylist(), 1)]
        except (OSError, ValueError) as error:
            raise UserError(f"{name}={path}: not a Parquet file ({error})") from None
    else:
        text = (gzip.decompress(data) if file.endswith(".gz") else data).decode("utf-8", "replace")
        lines = enumerate(text.split("\n"), start=1)
        rows = [(f"{path}: line {number}", _object(path, number, line)) for number, line in lines if line.strip()]
    if not rows:
        raise UserError(f"{name}={path}: holds no rows")
    return rows, digest


def _object(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}: line {number}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}: line {number}: a {type(row).__name__}, not an object")
    return row
