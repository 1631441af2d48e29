"""Isolation schedules for a Llama of half a million parameters that learns two tasks after each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.studies.epi import tasks
from jobs.studies.epi.tiers import MICRO, Tier
from raylm.config import build
from raylm.llm import micro, models
from raylm.sweep.space import merged
from raylm.train.config import FinetuneConfig
from raylm.train.run import Run

SIZES = (3_000, 600, 400)
"""Chats of a task for pretraining, for tuning, and for looking."""
LOOKED = 100
"""Of the last, those that the sweep looks at; the others confirm."""
ORDER = ("reverse", "sort")
MEASURES = ("forgetting", "new_task")
ARMS: dict[str, dict[str, Any]] = {
    "full": {"isolation": {"enabled": False}},
    "default": {"isolation": {}},
}
"""What the best trial is confirmed against, at the learning rate of the study."""


def prepare(folder: Path) -> dict[str, Any]:
    """Model and chats, made once; the `base` of the sweep."""
    tier = dataclasses.replace(MICRO, write=lambda place, name, seed: tasks.write(place, name, seed, SIZES))
    base = _pretrained(tier, folder)
    files = {name: tasks.write(folder / "data", name, 0, SIZES) for name in (tasks.BEFORE, *ORDER)}
    for parts in files.values():
        lines = Path(parts["held"]).read_text().splitlines(keepends=True)
        for part, chosen in (("looked", lines[:LOOKED]), ("confirming", lines[LOOKED:])):
            file = Path(parts["held"].replace("-held", f"-{part}"))
            file.write_text("".join(chosen))
            parts[part] = str(file)
    settings = {key: value for key, value in MICRO.settings.items() if key not in ("watch", "lr")}
    return {**settings, "epochs": 1, "model": str(base), **_held(files, "looked"), "seed": 0}


def confirm(base: Mapping[str, Any], best: Mapping[str, Any], seed: int, folder: Path) -> list[dict[str, Any]]:
    """Rows of the arms on chats that no trial looked at, with another order of training."""
    rows = []
    for arm, changes in {
        "best": best,
        **{name: {**arm, "lr": MICRO.settings["lr"]} for name, arm in ARMS.items()},
    }.items():
        data = merged({**base, "seed": seed, **_renamed(base)}, changes)
        root = folder / f"confirm-{seed}-{arm}"
        root.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        run = Run(build(FinetuneConfig, data), str(base["model"]), root, (0, 1))
        run.train(lambda row: None, lambda step, state: None)
        found = run.measures(len(run.rows))
        rows.append({"seed": seed, "arm": arm, **{name: found[name] for name in MEASURES}})
    return rows


def _held(files: Mapping[str, Mapping[str, str]], part: str) -> dict[str, Any]:
    return {
        "tasks": [{"name": name, "chains": files[name]["train"], "eval_chains": files[name][part]} for name in ORDER],
        "order": "sequential",
        "watch": {"every": 0.25, "chains": files[tasks.BEFORE][part]},
    }


def _renamed(base: Mapping[str, Any]) -> dict[str, Any]:
    """The held-out chats of `base` put in place of those that the sweep looked at."""
    sets = [{**task, "eval_chains": task["eval_chains"].replace("-looked", "-confirming")} for task in base["tasks"]]
    return {
        "tasks": sets,
        "watch": {**base["watch"], "chains": base["watch"]["chains"].replace("-looked", "-confirming")},
    }


def _pretrained(tier: Tier, folder: Path) -> Path:
    """A model that can do a little of the three tasks."""
    base, start = folder / "base", folder / "start"
    if (base / "config.json").exists():
        return base
    micro.build(start)
    settings = LlamaConfig.from_pretrained(start)
    settings.hidden_size, settings.intermediate_size, settings.num_hidden_layers = 96, 288, 4
    settings.num_attention_heads = settings.num_key_value_heads = 4
    settings.head_dim = 24
    torch.manual_seed(0)
    LlamaForCausalLM(settings).float().save_pretrained(start)
    models.check(start)
    changes = {"isolation": {"enabled": False}, "order": "mixed", "epochs": 2, "lr": 1e-3}
    run = tier.train(start, folder / "pretraining", (tasks.BEFORE, *ORDER), changes, seed=0, part="general")
    run.finish()
    (folder / "pretraining" / "model").rename(base)
    return base
