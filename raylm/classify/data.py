"""Labelled texts: read, split and put under stress."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raylm.classify.config import ClassifierConfig, StressConfig
from raylm.errors import UserError
from raylm.rows import read_rows


@dataclass(frozen=True)
class Texts:
    """Texts with the number of their label."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    gold: np.ndarray
    """[texts], int64."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, places: np.ndarray) -> Texts:
        """Some of them, in the order of the places."""
        return Texts(tuple(self.ids[n] for n in places), tuple(self.texts[n] for n in places), self.gold[places])


@dataclass(frozen=True)
class Data:
    """Everything that a run reads."""

    labels: tuple[str, ...]
    """Names, sorted; a label's number is its place."""
    train: Texts
    dev: Texts
    test: Texts | None
    digest: str
    overlaps: int
    """Training texts that were left out because dev or test holds them too."""


def load(config: ClassifierConfig) -> Data:
    """Read all files, set dev aside where there is none, leave out what would leak, and apply the stress.

    Raises:
        UserError: a file or row is malformed, there is one label only, or dev or test has a label that train lacks.
    """
    read = {name: _rows(name, path) for name in ("train", "dev", "test") if (path := getattr(config, name))}
    labels = tuple(sorted({row["label"] for row in read["train"][0]}))
    if len(labels) < 2:
        raise UserError(f"train={config.train}: all texts have the label {labels[0]!r}; a classifier needs two labels")
    parts = {name: _texts(name, getattr(config, name), rows, labels) for name, (rows, _) in read.items()}
    digest = hashlib.sha256("".join(digest for _, digest in read.values()).encode()).hexdigest()[:16]
    train = parts["train"]
    if "dev" not in parts:
        train, parts["dev"] = split(train, config.dev_share, config.seed)
    held = {text for name in ("dev", "test") if name in parts for text in parts[name].texts}
    clean = np.array([n for n, text in enumerate(train.texts) if text not in held], dtype=np.int64)
    stressed = stress(train.take(clean), config.stress, len(labels), config.seed)
    return Data(labels, stressed, parts["dev"], parts.get("test"), digest, len(train) - len(clean))


def teacher_place(folder: str) -> Path:
    """Directory of a teacher's model, from that of its artefact or its own.

    Raises:
        UserError: it does not exist.
    """
    place = Path(folder) / "model" if Path(folder, "model").is_dir() else Path(folder)
    if not place.is_dir():
        raise UserError(f"soft.teacher={folder}: no such directory; give the out directory of a train-classifier run")
    return place


def split(texts: Texts, share: float, seed: int) -> tuple[Texts, Texts]:
    """Most of the texts and a share of every label's; a label's only text stays with the most."""
    draws, held = np.random.default_rng([seed, 1]), []
    for label in np.unique(texts.gold):
        own = draws.permutation(np.flatnonzero(texts.gold == label))
        held += list(own[: min(len(own) - 1, max(1, round(share * len(own))))])
    chosen = np.zeros(len(texts), dtype=bool)
    chosen[held] = True
    return texts.take(np.flatnonzero(~chosen)), texts.take(np.flatnonzero(chosen))


def stress(texts: Texts, config: StressConfig, labels: int, seed: int) -> Texts:
    """Fewer texts, a long tail, wrong labels; the same for the same seed, and smaller shares are parts of larger."""
    draws = np.random.default_rng([seed, 2])
    ranks = draws.permutation(labels)
    kept = []
    for label in range(labels):
        own = draws.permutation(np.flatnonzero(texts.gold == label))
        tail = config.imbalance ** (-ranks[label] / max(1, labels - 1))
        kept += list(own[: max(1, round(len(own) * config.keep * tail))] if len(own) else [])
    found = texts.take(np.sort(np.array(kept, dtype=np.int64)))
    wrong = draws.random(len(found)) < config.noise
    shift = draws.integers(1, labels, len(found))
    return replace(found, gold=np.where(wrong, (found.gold + shift) % labels, found.gold))


def _texts(name: str, path: str, rows: list[dict[str, Any]], labels: tuple[str, ...]) -> Texts:
    numbers = {label: number for number, label in enumerate(labels)}
    unknown = sorted({row["label"] for row in rows} - numbers.keys())
    if unknown:
        raise UserError(f"{name}={path}: {len(unknown)} labels are not in train, such as {unknown[0]!r}")
    gold = np.array([numbers[row["label"]] for row in rows], dtype=np.int64)
    return Texts(tuple(row["id"] for row in rows), tuple(row["text"] for row in rows), gold)


def _rows(name: str, path: str) -> tuple[list[dict[str, Any]], str]:
    read, digest = read_rows(name, path, "rows with text and label")
    seen: set[str] = set()
    for number, (place, row) in enumerate(read, start=1):
        for field in ("text", "label"):
            value = row.get(field)
            if isinstance(value, int) and not isinstance(value, bool) and field == "label":
                row[field] = value = str(value)
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"{name}: {place}: {field} is {value!r}; it must be a text that is not empty")
        row["id"] = str(row.get("id", number))
        if row["id"] in seen:
            raise UserError(f"{name}: {place}: the id {row['id']} is there twice; ids must differ")
        seen.add(row["id"])
    return [row for _, row in read], digest
