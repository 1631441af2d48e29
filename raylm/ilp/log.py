"""The training's log of samples, and what a sample's path through training says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raylm.errors import UserError
from raylm.rows import lines_of
from raylm.storage import MANIFEST, Store

COLUMNS = ("step", "id", "loss", "token_accuracy")
"""Optimizer step (from 1), sample, nats a label token and share of label tokens that were the likeliest, both before
the step."""


@dataclass(frozen=True, slots=True)
class Path:
    """What training saw of one sample, exposure by exposure."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    right: tuple[bool, ...]
    """Whether every label token was the likeliest."""

    @property
    def confidence(self) -> float:
        """Mean over exposures of exp(-loss), the geometric mean of the answer tokens' probabilities.

        source: Swayamdipta et al., "Dataset cartography" (2020), section 2, with an answer's tokens for a label (R).
        """
        return float(np.exp(-np.asarray(self.losses)).mean())

    @property
    def variability(self) -> float:
        """Standard deviation of the same over exposures (R)."""
        return float(np.exp(-np.asarray(self.losses)).std())

    @property
    def looks_right(self) -> int:
        """Exposures at which it was right."""
        return sum(self.right)

    @property
    def falling(self) -> float | None:
        """Fall of the loss over all exposures along its least-squares line, as a share of the first loss.

        Negative where it rises; None below three exposures.
        """
        if len(self.losses) < 3 or self.losses[0] <= 0:
            return None
        slope = np.polyfit(np.arange(len(self.losses)), self.losses, 1)[0]
        return float(-slope * (len(self.losses) - 1) / self.losses[0])

    @property
    def alternation(self) -> float:
        """Share of changes between exposures that turn the direction of the one before, in [0, 1]."""
        moves = np.sign(np.diff(self.losses))
        return float((moves[1:] * moves[:-1] < 0).mean()) if len(moves) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Log:
    """The paths of all samples in a log."""

    paths: Mapping[str, Path]
    last_step: int
    truncated: str = ""
    """Why the log seems to lack its end; empty where it does not."""
    steps: int = 0
    """Steps of the whole training; the last one in the log where that is not known."""


def read(path: str) -> tuple[Log, str]:
    """A log and its digest.

    Args:
        path: artefact of finetune, or a Parquet or JSONL file with `COLUMNS`.

    Raises:
        UserError: no such file, a damaged one, or columns are missing.
    """
    store = Store(path)
    if store.exists(MANIFEST):
        manifest = store.manifest()
        assert manifest is not None
        if not store.exists("data/samples.parquet"):
            raise UserError(f"log={path}: an artefact of {manifest.stage}, which keeps no log of samples")
        return of_rows(_columns(store.read_table("data/samples.parquet"), path), manifest.rows), manifest.digest()
    file, name = Store.of_file(path)
    if not file.exists(name):
        raise UserError(f"log={path}: no such file (the training's artefact, or a Parquet or JSONL file of samples)")
    from raylm.train.data import file_digest

    if name.endswith(".parquet"):
        try:
            table = file.read_table(name)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"log={path}: damaged Parquet ({error}); copy it again, or leave log empty") from None
        return of_rows(_columns(table, path)), file_digest(path)
    return _read_lines(path, file.read_bytes(name)), file_digest(path)


def of_rows(rows: Sequence[Mapping[str, Any]], steps: int = 0) -> Log:
    """A log out of rows with `COLUMNS`; `steps` is how many there should be, 0 where that is not known."""
    paths: dict[str, list[tuple[int, float, float]]] = {}
    for row in rows:
        paths.setdefault(str(row["id"]), []).append(
            (int(row["step"]), float(row["loss"]), float(row["token_accuracy"]))
        )
    found = {}
    for name, seen in paths.items():
        seen.sort(key=lambda each: each[0])
        when, losses, accuracies = zip(*seen, strict=True)
        found[name] = Path(when, losses, tuple(each >= 1 - 1e-9 for each in accuracies))
    last = max((path.steps[-1] for path in found.values()), default=0)
    short = f"it ends at step {last} of {steps}" if last < steps else ""
    return Log(found, last, short, steps or last)


def _columns(table: pa.Table, path: str) -> list[dict[str, Any]]:
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(f"log={path}: lacks the columns {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    return table.select(list(COLUMNS)).to_pylist()


def _read_lines(path: str, data: bytes) -> Log:
    """A JSONL log; a last line that was cut off is left out, and said."""
    rows: list[dict[str, Any]] = []
    lines = lines_of(data)
    cut = ""
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode("utf-8", "replace"))  # a cut may be within a character
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise UserError(f"log={path}:{number}: not valid JSON ({error.msg}); mend or remove the line") from None
            cut = f"its last line, {number}, is cut off"
            break
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            raise UserError(f"log={path}:{number}: lacks {', '.join(missing)}; a line needs {', '.join(COLUMNS)}")
        rows.append(row)
    if not rows:
        raise UserError(f"log={path}: holds no row; leave log empty to diagnose without one")
    log = of_rows(rows)
    return Log(log.paths, log.last_step, cut or log.truncated, log.steps)
