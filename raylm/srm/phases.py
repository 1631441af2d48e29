"""The order of a training: each fold's branches, the final branches, the fusion; and their optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from raylm.srm.config import RewardConfig
from raylm.srm.data import Part
from raylm.srm.structure import Structure


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of optimizer steps with one purpose."""

    kind: Literal["branches", "fusion"]
    fold: int
    """The fold that branches do not see; -1 for those that see all."""
    part: Part
    """What it learns from."""
    first: int
    """The run's step at which it begins."""
    epochs: int
    pieces: int
    """Steps an epoch."""

    @property
    def end(self) -> int:
        return self.first + self.epochs * self.pieces

    @property
    def title(self) -> str:
        """What reports call it."""
        if self.kind == "fusion":
            return "fusion"
        return f"branches without fold {self.fold + 1}" if self.fold >= 0 else "branches"

    def batch(self, step: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Pairs and rated texts of a step of the run, as places in the part; every epoch in an order of its own."""
        epoch, piece = divmod(step - self.first, self.pieces)
        found = []
        for salt, count in ((0, len(self.part.pairs)), (1, len(self.part.rated))):
            draws = np.random.default_rng([seed, salt, self.fold + 1, self.kind == "fusion", epoch])
            found.append(np.array_split(draws.permutation(count), self.pieces)[piece])
        return found[0], found[1]

    def ends_epoch(self, step: int) -> bool:
        return (step + 1 - self.first) % self.pieces == 0


def plan(config: RewardConfig, train: Part, folds: np.ndarray, trains: bool) -> list[Phase]:
    """All phases.

    Args:
        folds: [texts].
        trains: whether there are branches to train.
    """
    found: list[Phase] = []

    def add(kind: Literal["branches", "fusion"], fold: int, part: Part, epochs: int) -> None:
        count = len(part.pairs) if kind == "fusion" else max(len(part.pairs), len(part.rated))
        pieces = max(1, -(-count // config.batch_size))
        found.append(Phase(kind, fold, part, found[-1].end if found else 0, epochs, pieces))

    if trains and not config.retrain:
        for fold in range(config.folds):
            add("branches", fold, train.within(folds != fold), config.epochs)
    if trains:
        add("branches", -1, train, config.epochs)
    if not config.retrain:
        add("fusion", -1, train, config.fusion_epochs)
    return found


def optimizer(structure: Structure, phase: Phase, config: RewardConfig) -> torch.optim.Optimizer:
    """AdamW over what a phase trains; everything else is frozen."""
    structure.requires_grad_(False)
    if phase.kind == "fusion":
        modules: Sequence[tuple[torch.nn.Module, float]] = [(structure.fusion, config.fusion_lr)]
    else:
        names = config.retrain or list(structure.trained)
        modules = [(structure.trained[name], config.head_lr) for name in names]
        if config.tune:
            modules = [*modules, (structure.backbone.model, config.lr)]
    groups = []
    for module, lr in modules:
        module.requires_grad_(True)
        if module is structure.backbone.model:
            module.get_input_embeddings().requires_grad_(False)  # the gate reads them, the same in every fold
            if getattr(module, "pooler", None) is not None:
                module.pooler.requires_grad_(False)  # no loss reaches it
        groups += _groups(module, lr, config.weight_decay)
    return torch.optim.AdamW(groups)


def fusion_optimizer(fusion: torch.nn.Module, config: RewardConfig) -> torch.optim.Optimizer:
    """AdamW over a fusion alone."""
    return torch.optim.AdamW(_groups(fusion.requires_grad_(True), config.fusion_lr, config.weight_decay))


def _groups(module: torch.nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """What of a module trains, as groups with and without decay."""
    found = []
    for flat, decay in ((False, weight_decay), (True, 0.0)):
        params = [param for param in module.parameters() if param.requires_grad and (param.dim() < 2) == flat]
        if params:
            found.append({"params": params, "lr": lr, "peak": lr, "weight_decay": decay})
    return found


def set_rate(optimizer: torch.optim.Optimizer, step: int, phase: Phase, warmup_share: float) -> None:
    """Give every group its learning rate at a step of the run."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate(step, phase, warmup_share)


def rate(step: int, phase: Phase, warmup_share: float) -> float:
    """Share of the peak learning rate at a step of the run: linear warm-up, linear decay."""
    place, steps = step - phase.first, phase.end - phase.first
    warm = warmup_share * steps
    return (place + 1) / warm if place < warm else max(0.0, (steps - place) / max(1.0, steps - warm))
