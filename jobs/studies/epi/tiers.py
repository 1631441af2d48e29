"""The two sizes of the study: which model is tuned on what, and how it is looked at."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.studies.epi import real, tasks
from jobs.studies.epi.arms import FAMILIES
from raylm.config import build
from raylm.llm import micro, models
from raylm.train.config import FinetuneConfig
from raylm.train.run import Run


@dataclass(frozen=True)
class Tier:
    """One size of the study."""

    name: str
    """Of the result file."""
    orders: tuple[tuple[str, ...], ...]
    """The sequences of tasks."""
    before: str
    """Task that is only looked at: what the model can do already."""
    write: Callable[[Path, str, int], Mapping[str, str]]
    """Files of a task in a folder for a seed, by part; `train` and `held` at least."""
    base: Callable[[Path, int], Path]
    """The model that a seed starts from, made below a folder where it has to be made."""
    settings: Mapping[str, Any]
    """Of the trainer, for all arms."""
    families: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Families of arms."""
    mixed: tuple[str, ...]
    """Families that are run with all tasks mixed as well, beside runs of the first arm on each task alone."""

    scored: str
    """What is a score where settings are chosen: one of `analysis.LOOKS`."""

    @property
    def arms(self) -> dict[str, Mapping[str, Any]]:
        """All arms by name."""
        return {name: changes for family in self.families.values() for name, changes in family.items()}

    @property
    def front(self) -> tuple[str, ...]:
        """The arms of full fine-tuning, by learning rate; the first is full fine-tuning as it is."""
        return tuple(self.families["tuned_lr"])

    def train(
        self,
        base: Path,
        root: Path,
        names: Sequence[str],
        changes: Mapping[str, Any],
        *,
        seed: int,
        part: str = "train",
    ) -> Run:
        """A finished run of some tasks, in an empty folder."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        files = {name: self.write(root.parent / "data", name, seed) for name in {*names, self.before}}
        weights = {self.before: 2.0} if part == "general" else {}
        sets = [
            {"name": name, "chains": files[name][part], "eval_chains": files[name]["held"],
             "weight": weights.get(name, 1.0)}
            for name in names
        ]  # fmt: skip
        watch = {
            **self.settings["watch"],
            **({"chains": files[self.before]["held"]} if self.before not in names else {}),
        }
        settings = {**self.settings, "seed": seed, "tasks": sets, **changes, "watch": watch}
        torch.manual_seed(seed)
        run = Run(build(FinetuneConfig, settings), str(base), root, (0, 1))
        run.train(lambda row: None, lambda step, state: None)
        return run


EPOCHS = 1.5
"""Of pretraining a micro model, on all tasks, with what it is to be able to do already twice as often."""
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)
"""Of a micro model's chats: a token is a byte, so that the names of roles would be a third of a chat."""
SIZES = (3_500, 800, 100)
"""Chats of a task for pretraining a micro model, for tuning it, and for looking."""
REAL_SIZES = (40, 12)
"""Chats of a task for tuning SmolLM2, and for looking."""
COMMON: dict[str, Any] = {"engine": "torch", "workers": 1, "batch_size": 16, "weight_decay": 0.01, "warmup_share": 0.05,
                          "checkpoint_every": 1_000_000, "watch": {"every": 0.25}}  # fmt: skip


def _pretrained(out: Path, seed: int) -> Path:
    """A Llama of 0.3 million parameters that can do a little of every task."""
    base = out / f"base-{seed}"
    if (base / "config.json").exists():
        return base
    start = out / f"start-{seed}"
    micro.build(start)
    settings = LlamaConfig.from_pretrained(start)
    settings.hidden_size, settings.intermediate_size, settings.num_hidden_layers = 96, 192, 3
    settings.num_attention_heads = settings.num_key_value_heads = 4
    settings.head_dim = 24
    torch.manual_seed(seed)
    LlamaForCausalLM(settings).float().save_pretrained(start)
    tokenizer = models.load_tokenizer(start)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(start)
    models.check(start)
    changes = {"isolation": {"enabled": False}, "order": "mixed", "epochs": EPOCHS, "lr": 2e-3}
    run = MICRO.train(start, out / f"pretraining-{seed}", list(tasks.TASKS), changes, seed=seed, part="general")
    run.finish()
    (out / f"pretraining-{seed}" / "model").rename(base)
    return base


MICRO = Tier(
    name="epi",
    orders=tasks.ORDERS,
    before=tasks.BEFORE,
    write=lambda folder, name, seed: tasks.write(folder, name, seed, SIZES),
    base=_pretrained,
    settings={**COMMON, "micro_batch": 16, "epochs": 2, "lr": 1e-3, "max_length": 64},
    families=FAMILIES,
    mixed=("tuned_lr", "epi", "static", "random"),
    scored="looks",
)
REAL = Tier(
    name="epi_real",
    orders=real.ORDERS[:1],
    before=real.BEFORE,
    write=lambda folder, name, seed: real.write(folder, name, seed, REAL_SIZES),
    base=lambda out, seed: models.resolve("smollm2-135m-instruct").path,
    settings={**COMMON, "micro_batch": 8, "epochs": 2, "lr": 2e-4, "max_length": 256, "precision": "bfloat16"},
    families={
        "tuned_lr": {name: FAMILIES["tuned_lr"][name] for name in ("full", "lr_0.1")},
        "epi": {"epi_0.5_0.3": FAMILIES["epi"]["epi_0.5_0.3"]},
        "random": {"random_0.3": FAMILIES["random"]["random_0.3"]},
    },
    mixed=(),
    scored="token_looks",
)
TIERS = {"micro": MICRO, "real": REAL}
