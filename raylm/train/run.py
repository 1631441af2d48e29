"""A training run on one rank, from its newest checkpoint to the exported model; it knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from raylm.llm import models
from raylm.train import checkpoint
from raylm.train.config import FinetuneConfig
from raylm.train.data import read_all
from raylm.train.engines import collect, make_engine, restore
from raylm.train.isolation import save_mask
from raylm.train.isolation.collectives import everyones
from raylm.train.isolation.fragments import Fragments
from raylm.train.loggers import Loggers
from raylm.train.model import build_model, export, load_fragments
from raylm.train.trainer import Trainer
from raylm.train.watch import Watch
from raylm.train.work import Work

Save = Callable[[int, dict[str, Any]], None]
"""Stores this rank's state after a step; all ranks call it together."""


class Run:
    """Everything that one rank of a run holds."""

    def __init__(
        self, config: FinetuneConfig, model: str, root: Path, ranks: tuple[int, int], saved: Path | None = None
    ) -> None:
        """Begin a run, or go on from a checkpoint of any number of ranks.

        Args:
            config: of the stage.
            model: directory of the model to start from.
            root: directory of the artefact.
            ranks: this rank, and how many there are.
            saved: directory of the checkpoint.
        """
        tokenizer = models.load_tokenizer(model, config.trust_remote_code)
        work = Work.of(config, read_all(config)[0], tokenizer)
        self.config, samples, self.plan = work.config, work.samples, work.plan
        self.source, self.root, config = model, root, work.config
        self.rank, self.world = ranks
        weights = build_model(model, config)
        self.trainable = sum(param.numel() for param in weights.parameters() if param.requires_grad)
        states = checkpoint.load(saved) if saved is not None else []
        fragments = Fragments(fragment for state in states for fragment in state["fragments"])
        if saved is not None:
            # They go in before the engine is made: ZeRO then partitions and casts them as it did at first.
            load_fragments(weights, fragments, saved)
        self.engine = make_engine(weights, config, self.world, self.plan.steps)
        self.trainer = Trainer(config, self.engine, samples, self.plan, tokenizer.pad_token_id or 0, ranks=ranks)
        self.watch = Watch(config, work.watched, self.plan, work.repair.extra)
        self.rows: list[dict[str, Any]] = []
        """A row a step; see `Trainer.step`."""
        self.first = 0
        if states:
            self._restore(states, fragments)
        self.trained = 0
        self.clock = time.monotonic()

    def train(self, on_step: Callable[[dict[str, Any]], None], save: Save) -> None:
        """Train to the end; `on_step` gets the row of every step, `save` a state every few steps."""
        loggers = Loggers(self.config, str(self.root), self.first) if self.rank == 0 else None
        step = self.first
        if step == 0 and self.watch.due(0):
            self._look(0, loggers)
        while step < self.plan.steps and not self.watch.ended(step):
            row = self.trainer.step(step)
            step += 1
            self.rows.append(row)
            self.trained += row["total_tokens"]
            if step == self.plan.stage_at(step - 1)[1] and self.engine.optimizer.penalty is not None:
                self.engine.optimizer.penalty.settle()
            if loggers is not None:
                loggers.write(step, {f"train/{key}": row[key] for key in ("loss", "lr", "grad_norm")})
            looked = self.watch.due(step)
            if looked:
                self._look(step, loggers)
            speed = self.trained / (time.monotonic() - self.clock)
            measures = {"measures": self.measures(step)} if looked else {}
            on_step({"step": step, "loss": row["loss"], "tokens_per_second": speed, **self._overlap(), **measures})
            if step % self.config.checkpoint_every == 0 and step < self.plan.steps:
                save(step, self.state(step))
        if loggers is not None:
            loggers.close()

    def finish(self) -> dict[str, Any]:
        """Export the model and the mask; returns the log of all ranks, which rank 0 is to keep."""
        seconds = time.monotonic() - self.clock
        best = self.root / BEST
        chosen = load_file(best) if self.config.watch.keep_best and self.rank == 0 and best.exists() else None
        sample = self.trainer.samples[0]
        difference = export(self.engine, self.source, self.root, self.config, sample=sample, chosen=chosen)
        isolation = self.engine.optimizer.isolation
        if isolation is not None and isolation.holds:
            save_mask(isolation, self.root / "isolation" / "mask.safetensors")
        if self.rank == 0:
            best.unlink(missing_ok=True)
        held = self.trainer.padding + self.trained
        return {
            "steps": self.rows,
            "masks": isolation.log if isolation is not None else [],
            "watch": self.watch.rows,
            "exported_step": self._exported(),
            "measures": self.measures(self._exported()),
            "seen": sorted(row for rows in everyones(self.trainer.seen) for row in rows),
            "tokens_per_second": self.trained / seconds,
            "step_seconds": seconds / max(1, len(self.rows) - self.first),
            "trainable_parameters": self.trainable,
            "padding_share": self.trainer.padding / max(1, held),
            "export_largest_logit_difference": difference,
        }

    def _overlap(self) -> dict[str, float]:
        """Jaccard index of the newest mask with the first one, once there are two."""
        isolation = self.engine.optimizer.isolation
        newest = isolation.log[-1]["jaccard_first"] if isolation is not None and isolation.log else None
        return {} if newest is None else {"mask_overlap": newest}

    def measures(self, step: int) -> dict[str, float]:
        """What a sweep may look for: the training loss of a step, and what held-out chains say up to it."""
        return {"loss": self.rows[max(step, 1) - 1]["loss"], **self.watch.measures(step)}

    def _exported(self) -> int:
        """Step whose weights are exported."""
        best = self.watch.best() if self.config.watch.keep_best else None
        return best[0] if best is not None else len(self.rows)

    def state(self, step: int) -> dict[str, Any]:
        """What goes on from here: weights, moments, isolation, penalty, random numbers, log."""
        optimizer = self.engine.optimizer
        return {
            "step": step,
            "fragments": collect(self.engine),
            "isolation": optimizer.isolation.state_dict() if optimizer.isolation is not None else None,
            "penalty": optimizer.penalty.state_dict() if optimizer.penalty is not None else None,
            "rng": torch.get_rng_state(),
            "rows": self.rows if self.rank == 0 else [],
            "watch": self.watch.rows if self.rank == 0 else [],
            "seen": self.trainer.seen,
        }

    def _restore(self, states: list[dict[str, Any]], fragments: Fragments) -> None:
        """Put the states of all ranks back. What was seen goes on with rank 0, if there are other ranks now."""
        own, optimizer = states[self.rank % len(states)], self.engine.optimizer
        self.first = own["step"]
        restore(self.engine, fragments, self.first)
        if optimizer.isolation is not None:
            optimizer.isolation.load_state_dict([state["isolation"] for state in states])
        if optimizer.penalty is not None:
            optimizer.penalty.load_state_dict([state["penalty"] for state in states])
        torch.set_rng_state(own["rng"])
        self.rows, self.watch.rows = list(states[0]["rows"]), list(states[0]["watch"])
        if self.rank == 0:
            self.trainer.seen = [row for state in states for row in state["seen"]]

    def _look(self, step: int, loggers: Loggers | None) -> None:
        best = self.watch.look(self.trainer, step)
        if loggers is not None:
            for row in self.watch.rows[-len(self.watch.sets) :]:
                loggers.write(step, {f"{row['set']}/{key}": row[key] for key in ("loss", "token_accuracy", "exact")})
        if best and self.config.watch.keep_best:
            weights = {name: value.contiguous() for name, value in self.engine.weights().items()}
            if weights:
                partial = self.root / (BEST + ".partial")
                save_file(weights, partial)
                partial.replace(self.root / BEST)


BEST = "best.safetensors"
"""Weights of the lowest held-out loss so far, below the root."""
