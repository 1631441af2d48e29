"""A classifier's training on one rank, from its newest checkpoint to the saved model; it knows nothing of Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raylm.classify import metrics
from raylm.classify.config import ClassifierConfig
from raylm.classify.data import Data, Texts, load, teacher_place
from raylm.classify.model import TextClassifier, Tokens, encode, probabilities, save
from raylm.classify.model import load as load_model
from raylm.errors import UserError
from raylm.llm import quick
from raylm.softlabels import targets
from raylm.softlabels.losses import combined
from raylm.train import checkpoint

_NONE = Texts((), (), np.zeros(0, np.int64))
NEEDS_VECTORS = ("glle", "propagation")


class Run:
    """Everything that one rank holds. All ranks see the same data, soft labels and batches."""

    def __init__(
        self,
        config: ClassifierConfig,
        model: str,
        ranks: tuple[int, int] = (0, 1),
        saved: Path | None = None,
        *,
        known: Mapping[str, np.ndarray] | None = None,
        teacher: Callable[[Texts], np.ndarray] | None = None,
    ) -> None:
        """Begin a run, or go on from a checkpoint of any number of ranks.

        Args:
            model: directory of the encoder.
            ranks: this rank, and how many there are.
            saved: directory of the checkpoint.
            known: vectors of all texts by the untouched encoder, where the caller has them; others are computed.
            teacher: probabilities [texts, labels] for distillation; without it the config's directory is loaded.

        Raises:
            UserError: as `load`; too many texts are longer than max_length; a teacher with other labels.
        """
        quick.without_sklearn()
        from transformers import AutoModel, AutoTokenizer

        self.config, (self.rank, self.world) = config, ranks
        self.data: Data = load(config)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        torch.manual_seed(config.seed)
        encoder = AutoModel.from_pretrained(model, dtype=torch.float32, use_safetensors=True)
        self.model = TextClassifier(
            encoder, self.data.labels, pooling=config.pooling, max_length=config.max_length,
            heads=2 if config.soft.mode == "two_head" else 1,
        )  # fmt: skip
        if config.gpus_per_worker:
            self.model = self.model.to("cuda")
        self.known, self.pooled = known, dict[int, torch.Tensor]()
        read = [self.data.train, self.data.dev] if known is None or not config.freeze else [_NONE, _NONE]
        self.train_tokens, self.dev_tokens = (self.tokens(part) for part in read)
        self.overlong = self._check_length()
        vectors = self.vectors(self.data.train) if config.soft.kind in NEEDS_VECTORS else None
        train, dev = ((part.texts, part.gold) for part in (self.data.train, self.data.dev))
        self.targets = targets.make(
            config.soft, train, dev, len(self.data.labels), vectors=vectors, taught=self._taught(teacher),
            seed=config.seed,
        )  # fmt: skip
        self.soft = torch.from_numpy(self.targets.rows).float()
        self.gold = torch.from_numpy(self.data.train.gold)
        counts = np.bincount(self.data.train.gold, minlength=len(self.data.labels))
        rarity = len(self.gold) / (len(counts) * np.maximum(counts, 1))
        self.weights = torch.from_numpy(rarity[self.data.train.gold]).float()
        self.counts, self.pieces = counts, -(-len(self.gold) // config.batch_size)
        self.steps, self.first = self.pieces * config.epochs, 0
        self.optimizer = self._optimizer()
        self.rows: list[dict[str, float]] = []
        """step, loss; a row a step."""
        self.looks: list[dict[str, float]] = []
        """epoch and the figures on dev; a row an epoch."""
        self.best: dict[str, torch.Tensor] = {}
        if saved is not None:
            self._restore(checkpoint.load(saved)[0])
        parallel = self.world > 1
        self.wrapped: nn.Module = nn.parallel.DistributedDataParallel(self.model) if parallel else self.model

    def vectors(self, texts: Texts) -> np.ndarray:
        """Pooled vectors of texts by the encoder as it is now, [texts, hidden]; those known beforehand are taken."""
        if self.known is not None:
            return np.stack([self.known[text] for text in texts.texts])
        return encode(self.model, self.tokens(texts))

    def probabilities(self, texts: Texts) -> np.ndarray:
        """Of every label, [texts, labels]; a frozen encoder reads a set of texts once."""
        if not self.config.freeze:
            return probabilities(self.model, self.tokens(texts))
        with torch.no_grad():
            return torch.softmax(self.model(pooled=self._pooled(texts))[0].double(), -1).cpu().numpy()

    def _pooled(self, texts: Texts) -> torch.Tensor:
        if id(texts) not in self.pooled:
            found = torch.from_numpy(self.vectors(texts)).float()
            self.pooled[id(texts)] = found.to(next(self.model.parameters()).device)
        return self.pooled[id(texts)]

    def _taught(self, teacher: Callable[[Texts], np.ndarray] | None) -> tuple[np.ndarray, np.ndarray] | None:
        """A teacher's log-probabilities of the training and the dev texts."""
        if self.config.soft.kind != "distillation":
            return None
        ask = teacher or teacher_of(self.config.soft.teacher, self.data.labels)
        train, dev = (np.log(np.maximum(ask(part), 1e-12)) for part in (self.data.train, self.data.dev))
        return train, dev

    def tokens(self, texts: Texts) -> Tokens:
        """Texts for the model."""
        return Tokens(texts.texts, self.tokenizer, self.config.max_length)

    def train(self, on_step: Callable[[dict[str, Any]], None], keep: Callable[[int, dict[str, Any]], None]) -> None:
        """Train to the end; `on_step` gets the row of every step, `keep` a state every few steps."""
        self.wrapped.train()
        for step in range(self.first, self.steps):
            row = {"step": step + 1, "loss": self.step(step)}
            self.rows.append(row)
            if (step + 1) % self.pieces == 0:
                self._look((step + 1) // self.pieces)
            looked = (step + 1) % self.pieces == 0
            on_step({**row, "measures": self.measures(self.looks[-1])} if looked else row)
            if (step + 1) % self.config.checkpoint_every == 0 and step + 1 < self.steps:
                keep(step + 1, self.state(step + 1))

    def step(self, step: int) -> float:
        """One optimizer step; its loss, a mean over the texts of all ranks."""
        places = self._batch(step)
        own = places[self.rank :: self.world]
        if not self.config.freeze:  # dropout, the same after a resume; heads have none
            torch.manual_seed(_mixed(self.config.seed, step, self.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self._rate(step)
        device = next(self.model.parameters()).device
        if self.config.freeze:
            logits = self.wrapped(pooled=self._pooled(self.data.train)[own])
        else:
            ids, mask = self.train_tokens.batch(own)
            logits = self.wrapped(ids.to(device), mask.to(device))
        loss = combined(
            logits[0], self.gold[own].to(device), self.soft[own].to(device), mode=self.config.soft.mode,
            alpha=self.config.soft.alpha if self.config.soft.kind != "none" else 0.0,
            auxiliary=logits[1] if len(logits) > 1 else None,
            weights=self.weights[own].to(device) if self.config.class_weights == "balanced" else None,
        ) * (len(own) * self.world / len(places))  # fmt: skip
        if not torch.isfinite(loss):
            named = ", ".join(self.data.train.ids[place] for place in places)
            raise FloatingPointError(f"step {step + 1}: loss is {float(loss)}; the batch holds texts {named}")
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        total = loss.detach() / self.world
        if self.world > 1:
            torch.distributed.all_reduce(total)
        return float(total)

    def measures(self, look: dict[str, float]) -> dict[str, float]:
        """What a sweep may look for: the training loss and the dev figures of the end of an epoch."""
        loss = self.rows[int(look["epoch"]) * self.pieces - 1]["loss"]
        return {"loss": loss, **{f"dev_{name}": value for name, value in look.items() if name != "epoch"}}

    def _kept(self) -> dict[str, float]:
        """The look at the weights that are kept."""
        best = max(self.looks, key=lambda look: look["macro_f1"]) if self.config.keep_best else self.looks[-1]
        return self.measures(best)

    def finish(self, folder: Path | None = None) -> dict[str, Any]:
        """Evaluate with the weights to keep, on rank 0, and save them; returns the log."""
        if self.rank > 0:
            return {}
        if self.best:
            self.model.load_state_dict(self.best, strict=False)
        self.model.eval()
        part = self.data.test if self.data.test is not None else self.data.dev
        found = self.probabilities(part)
        if folder is not None:
            save(self.model, self.tokenizer, folder)
        return {
            "steps": self.rows,
            "looks": self.looks,
            "measures": self._kept(),
            "figures": metrics.measure(found, part.gold, self.counts),
            "reliability": metrics.reliability(found, part.gold),
            "predictions": [
                {"id": name, "gold": self.data.labels[gold], "predicted": self.data.labels[row.argmax()],
                 "confidence": float(row.max()), "gold_probability": float(row[gold])}
                for name, gold, row in zip(part.ids, part.gold, found, strict=True)
            ],
            "texts": {"train": len(self.gold), "dev": len(self.data.dev), "evaluated": len(part)},
            "overlong": self.overlong,
            "overlaps": self.data.overlaps,
            "temperature": self.targets.temperature,
            "trainable_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
        }  # fmt: skip

    def state(self, step: int) -> dict[str, Any]:
        """What goes on from here; rank 0 has all of it."""
        if self.rank > 0:
            return {"step": step}
        return {
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "log": json.dumps([self.rows, self.looks]),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.first, self.best = state["step"], state["best"]
        self.rows, self.looks = json.loads(state["log"])

    def _look(self, epoch: int) -> None:
        """Dev figures at the end of an epoch; every rank computes the same ones."""
        found = self.probabilities(self.data.dev)
        before = max((look["macro_f1"] for look in self.looks), default=-1.0)
        self.looks.append({"epoch": epoch, **metrics.measure(found, self.data.dev.gold, self.counts)})
        if self.config.keep_best and self.looks[-1]["macro_f1"] > before:
            trained = {name for name, param in self.model.named_parameters() if param.requires_grad}
            self.best = {name: value.clone() for name, value in self.model.state_dict().items() if name in trained}

    def _batch(self, step: int) -> list[int]:
        """Places of a step's texts: every epoch's own order, cut into pieces that are all nearly as large."""
        epoch, piece = divmod(step, self.pieces)
        order = np.random.default_rng([self.config.seed, 3, epoch]).permutation(len(self.gold))
        return [int(place) for place in np.array_split(order, self.pieces)[piece]]

    def _rate(self, step: int) -> float:
        warm = self.config.warmup_share * self.steps
        return (step + 1) / warm if step < warm else max(0.0, (self.steps - step) / max(1.0, self.steps - warm))

    def _optimizer(self) -> torch.optim.Optimizer:
        if getattr(self.model.encoder, "pooler", None) is not None:
            self.model.encoder.pooler.requires_grad_(False)  # no loss reaches it
        groups: list[dict[str, Any]] = []
        for module, lr in ((self.model.encoder, self.config.lr), (self.model.heads, self.config.head_lr)):
            if module is self.model.encoder and self.config.freeze:
                module.requires_grad_(False)
                continue
            for flat, decay in ((False, self.config.weight_decay), (True, 0.0)):
                params = [param for param in module.parameters() if param.requires_grad and (param.dim() < 2) == flat]
                groups.append({"params": params, "lr": lr, "peak": lr, "weight_decay": decay})
        return torch.optim.AdamW(groups)

    def _check_length(self) -> dict[str, int]:
        counts = {"train": self.train_tokens.overlong, "dev": self.dev_tokens.overlong}
        for name, tokens in (("train", self.train_tokens), ("dev", self.dev_tokens)):
            if tokens.overlong > self.config.max_overlong_share * len(tokens):
                raise UserError(
                    f"{tokens.overlong} of {len(tokens)} {name} texts have more tokens than "
                    f"max_length={self.config.max_length}, and max_overlong_share={self.config.max_overlong_share} of "
                    "them may; raise one of the two"
                )
        return counts


def teacher_of(folder: str, labels: Sequence[str]) -> Callable[[Texts], np.ndarray]:
    """Probabilities of these labels, in this order, by a trained classifier: texts to [texts, labels].

    Raises:
        UserError: there is no classifier, or it has other labels.
    """
    model, tokenizer = load_model(teacher_place(folder))
    if set(model.labels) != set(labels):
        odd = sorted(set(model.labels) ^ set(labels))
        raise UserError(f"soft.teacher={folder}: its labels are not those of train; only one of them has {odd[0]!r}")
    order = [model.labels.index(label) for label in labels]
    return lambda texts: probabilities(model, Tokens(texts.texts, tokenizer, model.max_length))[:, order]


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
