"""One world: tune its base model, with a repair plan or without, look at what it learned, and diagnose it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.studies.ilp.world import World, chat, other_forms, write_rows
from raylm.config import build
from raylm.ilp import items, log, measure, stage
from raylm.ilp.config import DiagnoseConfig
from raylm.ilp.measure import Diagnosis
from raylm.ilp.scoring import Scorer
from raylm.llm import models
from raylm.llm.chat import training_ids
from raylm.storage import Store
from raylm.train.config import FinetuneConfig
from raylm.train.data import Sample
from raylm.train.repair import RepairPlan, dump
from raylm.train.run import Run

FIRST, REST = 24, 4
"""Passes over the first block of the stream, and over what follows it."""
SETTINGS: dict[str, Any] = {
    "engine": "torch", "workers": 1, "batch_size": 16, "micro_batch": 16, "lr": 2e-3, "warmup_share": 0.05,
    "schedule": "cosine", "max_length": 64, "checkpoint_every": 1_000_000, "isolation": {"enabled": False},
    "order": "sequential",
}  # fmt: skip


@dataclass(frozen=True)
class Tuned:
    """A model after a run, and the run's log of samples."""

    path: Path
    seen: list[tuple[int, str, float, float]]
    steps: int

    def paths(self) -> Mapping[str, log.Path]:
        """What the log says of each sample."""
        rows = [dict(zip(log.COLUMNS, row, strict=True)) for row in self.seen]
        return log.of_rows(rows, self.steps).paths


def tasks(world: World, folder: Path, rest: float = REST) -> list[dict[str, Any]]:
    """The stream: what is to be forgotten, then everything else, in `rest` passes."""
    first = write_rows(folder / "first.jsonl", world.rows("forgotten"))
    names = ("clean", "prerequisite", "conflict", "inconsistency", "underfit")
    other = write_rows(folder / "rest.jsonl", world.rows(*names))
    return [{"name": "first", "chains": first, "epochs": FIRST}, {"name": "rest", "chains": other, "epochs": rest}]


def name_of(row: dict[str, Any]) -> str:
    """Id of a sample in the log."""
    return f"{'first' if row['group'] == 'forgotten' else 'rest'}/{row['id']}"


def tune(
    world: World, base: Path, folder: Path, *, seed: int, plan: RepairPlan | None = None, rest: float = REST,
    max_steps: int = 0,
) -> Tuned:  # fmt: skip
    """Tune the base model in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = {
        **SETTINGS, "tasks": tasks(world, folder.parent, rest), "seed": seed, "max_steps": max_steps
    }  # fmt: skip
    if plan is not None:
        (folder / "plan.json").write_text(dump(plan))
        settings["plan"] = str(folder / "plan.json")
    torch.manual_seed(seed)
    run = Run(build(FinetuneConfig, settings), str(base), folder, (0, 1))
    run.train(lambda row: None, lambda step, state: None)
    seen = run.finish()["seen"]
    return Tuned(folder / "model", seen, len(run.rows))


def look(model: Path, rows: Iterable[dict[str, Any]]) -> dict[str, bool]:
    """Whether greedy decoding gives the truth, by id: each of its tokens is then the likeliest one."""
    tokenizer, scorer, rows = models.load_tokenizer(model), Scorer(model), list(rows)
    chats = [chat({**row, "answer": row.get("truth", row["answer"])}) for row in rows]
    samples = [Sample(each["id"], *training_ids(tokenizer, each["messages"])) for each in chats]
    return {row["id"]: score.greedy for row, score in zip(rows, scorer.score(samples), strict=True)}


def rephrased(model: Path, rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Share of a sample's other phrasings that are answered with the truth, by id: is it more than learned by heart?"""
    asked = [
        {**row, "id": f"{row['id']}/{number}", "question": question}
        for row in rows
        for number, question in enumerate(other_forms(row))
    ]
    found: dict[str, list[bool]] = {}
    for name, right in look(model, asked).items():
        found.setdefault(name.rsplit("/", 1)[0], []).append(right)
    return {name: sum(values) / len(values) for name, values in found.items()}


def settings(world: World, folder: Path, seed: int, **rules: Any) -> DiagnoseConfig:
    """Of the diagnosis."""
    return build(DiagnoseConfig, {
        "tasks": tasks(world, folder), "probe": {"max_tokens": 4}, "seed": seed, "max_length": 64, "rules": rules,
        "engine": {"kind": "transformers", "context": 64, "kv_cache_gib": 0.2, "max_in_flight": 128},
        "compute": {"cpus": 1.0}, "unit": 512,
    })  # fmt: skip


class Diagnostician:
    """Diagnoses models of worlds in this process; questions are encoded once."""

    def __init__(self) -> None:
        self.known: dict[str, np.ndarray] = {}

    def encode(self, texts: list[str]) -> np.ndarray:
        """Vectors of questions."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            vectors = stage.encoder("all-minilm-l6-v2")(new)
            self.known |= dict(zip(new, vectors, strict=True))
        return np.stack([self.known[text] for text in texts])

    def diagnose(self, config: DiagnoseConfig, base: Path, tuned: Tuned, folder: Path) -> Diagnosis:
        """What `raylm diagnose` finds, without Ray."""
        everyone = items.make(items.read(config)[0], config.probe)
        rows = [dict(zip(log.COLUMNS, row, strict=True)) for row in tuned.seen]
        sources = measure.Sources(
            ask=measure.here(Store(str(folder / "asked"))), tuned=str(tuned.path), base=str(base), encode=self.encode,
            log=log.of_rows(rows, tuned.steps),
        )  # fmt: skip
        return measure.diagnose(everyone, everyone, config, sources)
