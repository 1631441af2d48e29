"""A reward model's training on one rank, from its newest checkpoint to the saved model; it knows nothing of Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raylm.errors import UserError
from raylm.srm import backbone, calibration, diagnosis, fitting, gating, phases
from raylm.srm.config import RewardConfig
from raylm.srm.data import Data, Part, fold_of, load, ranged
from raylm.srm.fusion import AdditiveFusion, TextFusion
from raylm.srm.material import Known, Material, Tell
from raylm.srm.model import RewardModel
from raylm.srm.phases import Phase
from raylm.srm.structure import Structure
from raylm.train import checkpoint
from raylm.train.isolation.collectives import total


class Run:
    """Everything that one rank holds. All ranks see the same data, folds and batches."""

    def __init__(
        self,
        config: RewardConfig,
        model: str,
        ranks: tuple[int, int] = (0, 1),
        saved: Path | None = None,
        *,
        folder: Path | None = None,
        known: Known | None = None,
        tell: Tell | None = None,
    ) -> None:
        """Begin a run, or go on from a checkpoint of any number of ranks.

        Args:
            config: of the stage; its paths are ignored where it has a base.
            model: directory of the backbone, or of the reward model of which branches are trained anew.
            ranks: this rank, and how many there are.
            saved: directory of the checkpoint.
            folder: where the frozen backbone's features are kept until the run has ended; None keeps none.
            known: features that the caller has.
            tell: see `material.Tell`.

        Raises:
            UserError: as `data.load` and `Material`.
        """
        self.config, (self.rank, self.world) = config, ranks
        self.data: Data = load(config)
        torch.manual_seed(config.seed)
        self.structure = self._structure(model)
        self.material = Material(config, self.structure, self.data, ranks=ranks, folder=folder, known=known, tell=tell)
        self.material.scale_ratings(config.retrain or tuple(self.structure.trained))
        self.folds = fold_of(self.data.groups, config.folds, config.seed)
        self.phases = phases.plan(config, self.data.train, self.folds, bool(self.structure.trained))
        self.steps, self.first, self.begun = self.phases[-1].end, 0, -1
        self.values = torch.full((len(self.data.texts), len(self.structure.specs)), torch.nan)
        """[texts, branches]: of training texts by branches that have not seen their prompts, of others by the final."""
        self.start = {name: value.clone() for name, value in self._mutable().items()}
        self.optimizer: torch.optim.Optimizer | None = None
        self.rows: list[dict[str, Any]] = []
        """step, phase, loss; a row a step."""
        self.looks: list[dict[str, Any]] = []
        """phase, epoch, loss on the training set's last batch and on dev; a row an epoch."""
        self.best: dict[str, torch.Tensor] = {}
        self.gate: dict[str, float] = {}
        """Loss on held-out training prompts by kind of gate, nats a pair, where the gate was to be chosen."""
        if saved is not None:
            self._restore(checkpoint.load(saved)[0])

    def train(self, on_step: Callable[[dict[str, Any]], None], keep: Callable[[int, dict[str, Any]], None]) -> None:
        """Train to the end; `on_step` gets the row of every step, `keep` a state every few steps."""
        for number, phase in enumerate(self.phases):
            if number < self.begun:
                continue
            if number > self.begun:
                self._begin(number, phase)
            for step in range(max(self.first, phase.first), phase.end):
                row = {"step": step + 1, "phase": phase.title, "loss": self.step(step, phase)}
                self.rows.append(row)
                if phase.ends_epoch(step):
                    self._look(step, phase)
                on_step(row)
                if (step + 1) % self.config.checkpoint_every == 0 and step + 1 < phase.end:
                    keep(step + 1, self.state(step + 1))
            self._end(phase)
        self.structure.requires_grad_(False).eval()
        if not self.config.retrain:
            self._calibrate()

    def refit(self, values: torch.Tensor) -> None:
        """Train the fusion anew on other values of the branches, [texts, branches], as ablations do.

        Branches that are NaN throughout are out of it. Whether there is a gate stays as training has found it.
        """
        self.values = values
        self.material.forget()
        fresh = {name: value for name, value in self.start.items() if name.startswith("fusion.")}
        self.structure.load_state_dict(fresh, strict=False)
        number, phase = len(self.phases) - 1, self.phases[-1]
        self.rows, self.looks = [], []
        self._begin(number, phase)
        for step in range(phase.first, phase.end):
            self.rows.append({"step": step + 1, "phase": phase.title, "loss": self.step(step, phase)})
            if phase.ends_epoch(step):
                self._look(step, phase)
        self._end(phase)
        self._calibrate()

    def step(self, step: int, phase: Phase) -> float:
        """One optimizer step; its loss, a mean over what all ranks hold of the batch."""
        assert self.optimizer is not None
        pairs, rated = phase.batch(step, self.config.seed)
        torch.manual_seed(_mixed(self.config.seed, step, self.rank))  # dropout, the same after a resume
        phases.set_rate(self.optimizer, step, phase, self.config.warmup_share)
        if self.structure.training != (learns := self.config.tune and phase.kind == "branches"):
            self.structure.train(learns)
        own, counts = (pairs[self.rank :: self.world], rated[self.rank :: self.world]), (len(pairs), len(rated))
        loss = self._loss(phase, phase.part, own, counts, (step - phase.first) // phase.pieces)
        if not torch.isfinite(loss):
            texts = [self.data.texts[place][1][:40] for place in phase.part.pairs[pairs].flatten()[:4]]
            raise FloatingPointError(f"step {step + 1} ({phase.title}): loss is {loss.item()}; among its texts {texts}")
        if loss.requires_grad:
            loss.backward()
        for param in (param for group in self.optimizer.param_groups for param in group["params"]):
            param.grad = torch.zeros_like(param) if param.grad is None else param.grad
            total(param.grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(total(loss.detach()))

    def state(self, step: int) -> dict[str, Any]:
        """What goes on from here; rank 0 has all of it."""
        if self.rank > 0:
            return {"step": step}
        assert self.optimizer is not None
        return {
            "step": step,
            "begun": self.begun,
            "model": self._mutable(),
            "values": self.values,
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "log": json.dumps([self.rows, self.looks, self.gate]),
        }

    def finish(self, folder: Path | None) -> dict[str, Any]:
        """Save the model, and return what a report needs; None saves nothing."""
        if folder is not None:
            self.model().save(folder)
        part = self.data.test or self.data.dev
        scored, pairs = self.scored(part)
        differences = scored.scores[pairs[:, 0]] - scored.scores[pairs[:, 1]]
        named = (("train", self.data.train), ("dev", self.data.dev), ("evaluated", part))
        dev = (scored, pairs) if part is self.data.dev else self.scored(self.data.dev)
        return {
            "measures": self._measures(*dev),
            "figures": diagnosis.known(diagnosis.measure(scored, pairs) | {"agreement": self.agreement(scored, part)}),
            "calibration": calibration.curve(differences) if len(pairs) else [],
            "pairs": diagnosis.rows(scored, pairs),
            "bad_cases": diagnosis.bad_cases(scored, pairs),
            "steps": self.rows,
            "looks": self.looks,
            "counts": {name: {"pairs": len(own.pairs), "ratings": len(own.rated)} for name, own in named},
            "cut": {"prompts": self.material.features.cut_prompts, "responses": self.material.features.cut_responses},
            "gate": self.gate,
            "overlaps": self.data.overlaps,
            "contradictions": self.data.contradictions,
        }

    def _measures(self, scored: diagnosis.Scored, pairs: np.ndarray) -> dict[str, float]:
        """What a sweep may look for: losses of training, and of dev at the weights kept, and figures of dev pairs."""
        looks = [look["dev_loss"] for look in self.looks if look["phase"] == self.phases[-1].title]
        found = {"loss": self.rows[-1]["loss"], "dev_loss": min(looks)}
        figures = diagnosis.measure(scored, pairs)
        return found | {
            f"dev_{name}": figures[name] for name in ("pair_accuracy", "pair_nll", "ece") if name in figures
        }

    def scored(self, part: Part) -> tuple[diagnosis.Scored, np.ndarray]:
        """A part's texts with scores, and its pairs as places among them."""
        places, index = np.unique(np.concatenate([part.pairs.flatten(), part.rated]), return_inverse=True)
        values = self.material.values(places) if self.config.retrain else self.values[torch.from_numpy(places)]
        score, shares = self.fused(places, values)
        texts = [self.data.texts[place] for place in places]
        names = tuple(spec.name for spec in self.structure.specs)
        pairs = index[: part.pairs.size].reshape(-1, 2)
        return diagnosis.Scored(names, texts, score, values.double().numpy(), shares), pairs

    def agreement(self, scored: diagnosis.Scored, part: Part) -> dict[str, dict[str, float]]:
        """Of every branch that learns ratings with the part's ratings."""
        places = np.unique(np.concatenate([part.pairs.flatten(), part.rated]))
        rows = np.searchsorted(places, part.rated)
        return {
            name: diagnosis.agreement(scored.values[rows, scored.names.index(name)], part.ratings[:, column])
            for column, name in enumerate(self.data.columns)
            if len(rows)
        }

    def model(self) -> RewardModel:
        """The trained model, with the facts that its directory keeps."""
        fusion, writer = self.structure.fusion, self.config.writer
        settings: dict[str, Any] = {"calibration": {key: float(getattr(fusion, key)) for key in ("scale", "shift")}}
        if self.structure.writer is not None:
            settings["writer"] = writer.model_dump(mode="json")
        return RewardModel(self.structure, self.config.name, "unsaved", settings)

    def _structure(self, model: str) -> Structure:
        config = self.config
        if config.retrain:
            base = RewardModel.load(model, own_tools=config.own_tools).structure
            own = {spec.name: spec for spec in ranged(config.branches, self.data)}
            missing = [name for name in config.retrain if name not in base.trained or not own[name].trained]
            if missing:
                raise UserError(
                    f"retrain={missing[0]}: the base has no such head or adapter; it has {', '.join(base.trained)}"
                )
            return base.replaced({name: own[name] for name in config.retrain})
        body = backbone.load(model, max_length=config.max_length, keep=config.keep)
        if config.gpus_per_worker:
            body = body.to("cuda")
        structure = Structure(body, ranged(config.branches, self.data), config.fusion, own_tools=config.own_tools)
        structure.set_writer(config.writer)
        return structure.to(body.device)

    def _mutable(self) -> dict[str, torch.Tensor]:
        """Weights that training changes."""
        return self.structure.state_dict() if self.config.tune else self.structure.own_state()

    def _begin(self, number: int, phase: Phase) -> None:
        self.begun, self.best = number, {}
        if phase.kind == "branches" and not self.config.retrain:
            fresh = {name: value for name, value in self.start.items() if name.startswith(("trained.", "backbone."))}
            self.structure.load_state_dict(fresh, strict=False)
        if phase.kind == "fusion":
            self._refer()
            self._try_gate(phase)
        self.optimizer = phases.optimizer(self.structure, phase, self.config)

    def _end(self, phase: Phase) -> None:
        """Keep the best epoch's weights, and what the branches say of texts that they have not seen."""
        self.structure.load_state_dict(self.best, strict=False)
        if phase.kind == "fusion" or self.config.retrain:
            return
        train = np.isin(np.arange(len(self.folds)), self.material.trained)
        unseen = train & (self.folds == phase.fold) if phase.fold >= 0 else ~train
        places = np.flatnonzero(unseen)
        self.values[torch.from_numpy(places)] = self.material.values(places)

    def _refer(self) -> None:
        """Set each branch's reference: its mean and deviation over the training texts."""
        fusion, places = self.structure.fusion, torch.from_numpy(self.material.trained)
        if not self.structure.trained and not torch.isfinite(self.values).any():
            self.values = self.material.said.clone()
        said = self.values[places]
        centre = torch.nanmean(said, 0)
        spread = torch.nanmean((said - centre).square(), 0).sqrt()
        fusion.centre.copy_(torch.nan_to_num(centre))
        fusion.spread.copy_(torch.nan_to_num(spread, nan=1.0).clamp_min(1e-6))
        if isinstance(fusion, TextFusion):
            raw = self.material.second(-1, self.values)[places]
            fusion.center.copy_(raw.mean(0))
            fusion.deviation.copy_(raw.std(0).clamp_min(1e-4))

    def _try_gate(self, phase: Phase) -> None:
        """Let the prompt change the fusion's weights where that is asked for, or helps on prompts held out."""
        fusion = self.structure.fusion
        if not isinstance(fusion, AdditiveFusion) or self.config.fusion.gate != "auto":
            return
        if not self.gate:
            self.gate = gating.trial(self.material, self.values, phase, self.folds)
        fusion.gated.fill_(float(self.gate["prompt"] < self.gate["constant"]))

    def _look(self, step: int, phase: Phase) -> None:
        """Dev loss at the end of an epoch; every rank computes the same one."""
        dev, own = self.data.dev, []
        self.structure.eval()
        if self.config.retrain or phase.kind == "branches" or len(dev.pairs):
            own = [np.arange(len(dev.pairs)), np.arange(len(dev.rated))]
        counts = max(1, len(dev.pairs)), max(1, len(dev.rated))
        with torch.no_grad():
            loss = float(self._loss(phase, dev, (own[0], own[1]), counts, -1))
        before = min((look["dev_loss"] for look in self.looks if look["phase"] == phase.title), default=float("inf"))
        epoch = (step + 1 - phase.first) // phase.pieces
        self.looks.append({"phase": phase.title, "epoch": epoch, "loss": self.rows[-1]["loss"], "dev_loss": loss})
        if loss < before or not self.best:
            self.best = {name: value.clone() for name, value in self._mutable().items()}

    def _loss(
        self, phase: Phase, part: Part, own: tuple[np.ndarray, np.ndarray], counts: tuple[int, int], epoch: int
    ) -> torch.Tensor:
        if phase.kind == "branches":
            return fitting.branch_loss(self.material, part, own, counts)
        return fitting.fusion_loss(self.material, self.values, part, own[0], count=counts[0], epoch=epoch)

    def _calibrate(self) -> None:
        """Scale scores so that differences on dev are log-odds, and shift the mean training score to 0."""
        fusion, dev = self.structure.fusion, self.data.dev
        pairs, train = dev.pairs.flatten(), self.material.trained
        scores = self.fused(pairs, self.values[torch.from_numpy(pairs)], explain=False)[0].reshape(-1, 2)
        mean = float(self.fused(train, self.values[torch.from_numpy(train)], explain=False)[0].mean())
        fusion.scale.fill_(calibration.scale(scores[:, 0] - scores[:, 1]))
        fusion.shift.fill_(mean)

    @torch.no_grad()
    def fused(self, places: np.ndarray, values: torch.Tensor, explain: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Scores, [places], and attributions, [places, branches], of texts by the fusion as it is.

        Args:
            values: [places, branches].
            explain: whether a text fusion reads every text once more for every branch.
        """
        fusion, device = self.structure.fusion, self.material.device
        if isinstance(fusion, TextFusion) and not explain:
            features = self.material.second(-1, self.values)[torch.from_numpy(places)]
            return fusion.score(features.to(device)).double().cpu().numpy(), np.zeros((len(places), 0))
        found = [fusion(self.material.inputs(part), said.to(device)) for part, said in _batches(places, values)]
        score = torch.cat([part.score for part in found]).double().cpu().numpy()
        return score, torch.cat([part.attribution for part in found]).double().cpu().numpy()

    def _restore(self, state: dict[str, Any]) -> None:
        self.begun, self.first, self.best, self.values = state["begun"], state["step"], state["best"], state["values"]
        phase = self.phases[self.begun]
        self.structure.load_state_dict(state["model"], strict=False)
        self.optimizer = phases.optimizer(self.structure, phase, self.config)
        self.optimizer.load_state_dict(state["optimizer"])
        self.rows, self.looks, self.gate = json.loads(state["log"])


def _batches(places: np.ndarray, values: torch.Tensor, size: int = 64) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    for start in range(0, len(places), size):
        yield places[start : start + size], values[start : start + size]


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
