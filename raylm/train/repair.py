"""Repair plans: what a fine-tune is to do differently so that samples that were not learned are.

A plan is a JSON file, written by the diagnose stage or by hand. It names samples by their ids, and files by paths from
the plan's own directory.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from raylm.config import Config, build
from raylm.errors import UserError
from raylm.rows import read_texts
from raylm.storage import Store
from raylm.train.config import FinetuneConfig
from raylm.train.data import Sample, encode, file_digest, read_chains

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DOCUMENTS, GENERAL_TEXT = "repair documents", "repair general text"
"""Tasks that the samples of the first stage belong to."""
GENERAL = "general"
"""Set that extra passes are watched on."""


class DocumentPlan(Config):
    """Continued pre-training on documents, before the chains."""

    path: str
    """JSONL or Parquet file of rows with `text`."""
    share: float = Field(0.2, gt=0, le=1)
    """Of these documents in the stage; the rest is general text."""
    general: str = ""
    """File of general text; empty takes the chains as text."""
    epochs: float = Field(3.0, gt=0)
    """Passes over the documents."""


class ReplayPlan(Config):
    """Samples that come back while the stream goes on."""

    ids: tuple[str, ...]
    """Samples."""
    every: int = Field(500, ge=1)
    """Steps between two batches of them, which are steps of their own."""


class ExtraPlan(Config):
    """Further passes over the chains."""

    epochs: float = Field(ge=0)
    """Passes beyond the config's."""
    general: str = ""
    """Chains of a general set, looked at in training; empty watches none."""
    max_rise: float = Field(0.05, ge=0)
    """Rise of its loss, as a share of that before the first step, at which training ends."""


class RepairPlan(Config):
    """What to do with samples, and what to train on besides."""

    samples: str = ""
    """Digest of the chains it was made for."""
    drop: tuple[str, ...] = ()
    """Samples to leave out."""
    separate: tuple[tuple[str, str], ...] = ()
    """Pairs of samples that are in no batch together."""
    upweight: dict[str, float] = Field(default_factory=dict)
    """How often a pass holds a sample, times the weight of its task."""
    shuffle: bool = False
    """Mix all tasks, each as often as the config's order would have had it."""
    replay: ReplayPlan | None = None
    """Samples that come back."""
    extra: ExtraPlan | None = None
    """Further passes."""
    documents: DocumentPlan | None = None
    """A first stage."""
    reasons: dict[str, str] = Field(default_factory=dict)
    """Why, by sample."""

    def named(self) -> set[str]:
        """All samples that the plan speaks of."""
        pairs = {name for pair in self.separate for name in pair}
        return {*self.drop, *pairs, *self.upweight, *(self.replay.ids if self.replay else ())}


@dataclass(frozen=True, slots=True)
class Extras:
    """A plan in terms of places in the list of samples."""

    weights: dict[int, float] = field(default_factory=dict)
    rivals: dict[int, frozenset[int]] = field(default_factory=dict)
    replay: tuple[int, ...] = ()
    replay_every: int = 0
    documents: tuple[int, ...] = ()
    general: tuple[int, ...] = ()
    document_share: float = 1.0
    document_epochs: float = 1.0


def load(path: str) -> tuple[RepairPlan, str]:
    """A plan with paths that hold anywhere, and a digest of it and its files.

    Raises:
        UserError: no such file, or it is not a plan.
    """
    store, name = Store.of_file(path)
    if not store.exists(name):
        raise UserError(f"plan={path}: no such file (diagnose writes plan.json)")
    plan = build(RepairPlan, store.read_json(name), where=f"plan={path}")
    found = plan.model_dump(mode="json")
    digests = [file_digest(path)]
    for part, key in (("documents", "path"), ("documents", "general"), ("extra", "general")):
        if found[part] and found[part][key]:
            found[part][key] = _absolute(store.place, found[part][key])
            digests.append(file_digest(found[part][key]))
    return build(RepairPlan, found), hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]


def adapt(config: FinetuneConfig, plan: RepairPlan) -> FinetuneConfig:
    """The config with the plan's order and passes."""
    more = plan.extra.epochs if plan.extra else 0.0
    tasks = config.tasks
    if config.order == "sequential":
        tasks = tuple(task.model_copy(update={"epochs": (task.epochs or config.epochs) + more}) for task in tasks)
    changes: dict[str, Any] = {"epochs": config.epochs + more, "tasks": tasks}
    if plan.shuffle and config.order != "mixed":
        if config.order == "sequential":
            changes["tasks"] = tuple(
                task.model_copy(update={"weight": task.weight * task.epochs / changes["epochs"]}) for task in tasks
            )
        changes["order"] = "mixed"
    return config.model_copy(update=changes)


def keep(rows: list[dict[str, Any]], plan: RepairPlan, path: str) -> list[dict[str, Any]]:
    """The rows that the plan does not drop.

    Raises:
        UserError: the plan names samples that are not there, or leaves a task none.
    """
    there = {row["id"] for row in rows}
    missing = sorted(plan.named() - there)
    if missing:
        raise UserError(
            f"plan={path}: {len(missing)} of its samples are not among the chains (first: {', '.join(missing[:3])}); "
            "it was made for other chains"
        )
    dropped = set(plan.drop)
    kept = [row for row in rows if row["id"] not in dropped]
    emptied = {row.get("task_name", "") for row in rows} - {row.get("task_name", "") for row in kept}
    if emptied:
        of = f" of task {min(emptied)}" if min(emptied) else ""
        raise UserError(f"plan={path}: drops all samples{of}; take the task out of the config, or samples out of drop")
    return kept


def prepare(
    samples: list[Sample], plan: RepairPlan, tokenizer: PreTrainedTokenizerBase, config: FinetuneConfig
) -> tuple[list[Sample], Extras]:
    """Samples with the documents of the first stage behind them, and the plan in places.

    Raises:
        UserError: a document file cannot be read, or a document is empty.
    """
    place = {sample.id: index for index, sample in enumerate(samples)}
    rivals: dict[int, set[int]] = {}
    for left, right in plan.separate:
        if left in place and right in place:
            rivals.setdefault(place[left], set()).add(place[right])
            rivals.setdefault(place[right], set()).add(place[left])
    more: list[Sample] = []
    general: list[Sample] = []
    if plan.documents:
        more = _documents(plan.documents.path, DOCUMENTS, tokenizer, config)
        if plan.documents.share < 1:
            source = plan.documents.general
            general = (
                _documents(source, GENERAL_TEXT, tokenizer, config)
                if source
                else [Sample(f"text/{item.id}", item.ids, item.ids, GENERAL_TEXT) for item in samples]
            )
    first, second = len(samples), len(samples) + len(more)
    extras = Extras(
        weights={place[name]: weight for name, weight in plan.upweight.items() if name in place},
        rivals={index: frozenset(others) for index, others in rivals.items()},
        replay=tuple(place[name] for name in plan.replay.ids if name in place) if plan.replay else (),
        replay_every=plan.replay.every if plan.replay else 0,
        documents=tuple(range(first, second)),
        general=tuple(range(second, second + len(general))),
        document_share=plan.documents.share if plan.documents else 1.0,
        document_epochs=plan.documents.epochs if plan.documents else 1.0,
    )
    return [*samples, *more, *general], extras


def watched(plan: RepairPlan, tokenizer: PreTrainedTokenizerBase, config: FinetuneConfig) -> dict[str, list[Sample]]:
    """The general set of extra passes, where the plan has one."""
    if not plan.extra or not plan.extra.general:
        return {}
    return {GENERAL: encode(read_chains(plan.extra.general)[0], tokenizer, config)}


def apart(order: np.ndarray, rivals: dict[int, frozenset[int]], batch: int, carry: Sequence[int]) -> np.ndarray:
    """An order in which no batch holds two rivals, as near to the given one as swaps make it.

    Args:
        order: samples of one pass.
        rivals: of each sample.
        batch: samples of a batch.
        carry: what the first batch holds already, from the pass before.

    Where there are too few batches some rivals stay together.
    """
    found = [int(sample) for sample in order]
    shift = len(carry)

    def mates(at: int) -> list[int]:
        first = (at + shift) // batch * batch - shift
        early = [int(each) for each in carry] if first < 0 else []
        return early + [found[place] for place in range(max(0, first), min(first + batch, len(found))) if place != at]

    def fits(sample: int, at: int, leaving: int) -> bool:
        others = rivals.get(sample, frozenset())
        return not any(mate in others for mate in mates(at) if mate != leaving)

    for at in range(len(found)):
        if fits(found[at], at, -1):
            continue
        for step in range(1, len(found)):
            other = (at + step) % len(found)
            if (at + shift) // batch == (other + shift) // batch:
                continue
            if fits(found[other], at, -1) and fits(found[at], other, -1):
                found[at], found[other] = found[other], found[at]
                break
    return np.asarray(found)


def _documents(path: str, task: str, tokenizer: PreTrainedTokenizerBase, config: FinetuneConfig) -> list[Sample]:
    """Documents as samples whose every token is a label; long ones are cut into pieces of at most `max_length`."""
    found = []
    for number, text in enumerate(read_texts("documents", path), 1):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if tokenizer.eos_token_id is not None:
            ids = [*ids, tokenizer.eos_token_id]
        for start in range(0, len(ids), config.max_length):
            piece = ids[start : start + config.max_length]
            if len(piece) > 1:
                found.append(Sample(f"{task}/{number}-{start}", piece, piece, task))
    if not found:
        raise UserError(f"{path}: no documents")
    return found


def _absolute(folder: str, path: str) -> str:
    if "://" in path or posixpath.isabs(path):
        return path
    return posixpath.join(folder, path)


def dump(plan: RepairPlan) -> str:
    """A plan as the text of its file."""
    return json.dumps(plan.model_dump(mode="json", exclude_defaults=True), indent=1, sort_keys=True) + "\n"
