"""A retriever's training on one rank, from its newest checkpoint to the saved encoder; it knows nothing of Ray."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from raylm.errors import UserError
from raylm.retrieval.config import RetrieverConfig
from raylm.retrieval.encoder import Encoder
from raylm.retrieval.gather import gathered
from raylm.retrieval.layers import upper
from raylm.retrieval.looks import Looks
from raylm.retrieval.losses import Candidates, CollapseAlarm, Kind, Margins, allowed, loss
from raylm.retrieval.negatives import Pools, Remembered, Teacher, teacher_of
from raylm.retrieval.prepare import Data
from raylm.retrieval.soft import Pool, SoftTargets
from raylm.train import checkpoint

EASY: dict[str, Kind] = {"quadruplet": "triplet", "quadruplet_b": "triplet", "triplet_hard": "triplet",
                         "triplet_own": "triplet", "infonce_hard": "infonce", "margin_mse": "infonce"}  # fmt: skip
"""What stands in for a loss while hard negatives are left out."""
Group = tuple[torch.Tensor, torch.Tensor]


class Towers(nn.Module):
    """Queries and documents through one encoder in one call, as data parallelism wants it."""

    def __init__(self, encoder: Encoder) -> None:
        """Wrap an encoder."""
        super().__init__()
        self.encoder = encoder

    def forward(self, queries: Group, documents: Group) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit vectors of queries and of documents."""
        return self.encoder(*queries), self.encoder(*documents)


class Run:
    """Everything that one rank holds. All ranks see the same data, negatives, soft targets and batches."""

    def __init__(
        self,
        config: RetrieverConfig,
        data: Data,
        mined: pa.Table,
        ranks: tuple[int, int] = (0, 1),
        saved: Path | None = None,
        *,
        soft: SoftTargets | None = None,
        teacher: Teacher | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        """Begin a run, or go on from a checkpoint of any number of ranks.

        Args:
            mined: rows of `negatives.SCHEMA`; empty without hard negatives.
            ranks: this rank, and how many there are.
            saved: directory of the checkpoint.
            soft: soft targets of this data, where the caller has them; others are made.
            teacher: as negatives.teacher names it, where the caller has it.
            encoder: the untouched encoder, where the caller has it; it is trained.

        Raises:
            UserError: bad settings for this encoder or this data.
        """
        self.config, self.data, (self.rank, self.world) = config, data, ranks
        device = "cuda" if config.gpus_per_worker else "cpu"
        torch.manual_seed(config.seed)
        self.encoder = encoder if encoder is not None else self._fresh().to(device)
        self.body = self.encoder.model
        if config.adapter:
            self.encoder.adapt()
        elif config.freeze_layers:
            self.encoder.model = upper(self.body, config.freeze_layers, config.cache_gib)
        if teacher is None and config.negatives.teacher:
            teacher = teacher_of(config.negatives.teacher, config.max_length)
        self.teacher = teacher
        self.remembered = Remembered(teacher, data.train, data.corpus) if teacher else None
        weights = {"judged": config.negatives.judged, "bm25": config.negatives.bm25, "ann": config.negatives.ann}
        self.pools = Pools.of(mined, data.train, data.corpus, weights)
        self.soft = soft if soft is not None else self._soft()
        self.looks = Looks(config, data, self.encoder, ranks, teacher)
        self.pieces = -(-len(data.pairs) // config.batch_size)
        self.steps, self.first = self.pieces * config.epochs, 0
        self.every = config.negatives.refresh_every or self.pieces
        self.margins = Margins(**config.margins.model_dump())
        self.alarm, self.optimizer = CollapseAlarm(), self._optimizer()
        self.rows: list[dict[str, Any]] = []
        """step, loss, distances and the sources of hard negatives; a row a step."""
        self.best: dict[str, torch.Tensor] = {}
        if saved is not None:
            self._restore(checkpoint.load(saved)[0])
        self.towers = Towers(self.encoder)
        parallel = self.world > 1
        self.wrapped: nn.Module = nn.parallel.DistributedDataParallel(self.towers) if parallel else self.towers

    def train(self, on_step: Callable[[dict[str, Any]], None], keep: Callable[[int, dict[str, Any]], None]) -> None:
        """Train to the end; `on_step` gets the row of every step, `keep` a state every few steps.

        Raises:
            UserError: all texts get one vector.
        """
        if self.first == 0:
            self._look(0)
        self.encoder.train()
        for step in range(self.first, self.steps):
            if self.config.negatives.ann and step % self.every == 0:
                self.pools.rows["ann"] = self.looks.mine(step, self.pools.rows["ann"])
            row = self.step(step)
            self.rows.append(row)
            looked = (step + 1) % self.pieces == 0
            if looked:
                self._look((step + 1) // self.pieces)
            on_step({**row, "measures": self.measures(self.looks.rows[-1])} if looked else row)
            if (step + 1) % self.config.checkpoint_every == 0 and step + 1 < self.steps:
                keep(step + 1, self.state(step + 1))

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step; its row, the same on all ranks."""
        batch = self._batch(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self._rate(step)
        value, vectors = self._backward(step, batch)
        if not np.isfinite(value):
            named = ", ".join(self.data.train.ids[number] for number in batch["numbers"])
            raise FloatingPointError(f"step {step + 1}: loss is {value}; the batch holds queries {named}")
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.encoder.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._watch(step, vectors)
        return {"step": step + 1, "loss": value, **_distances(vectors), **batch["sources"]}

    def _backward(self, step: int, batch: dict[str, Any]) -> tuple[float, Candidates]:
        """Gradients of the batch's loss; its value and vectors. Gradient caching where a batch comes in pieces."""
        own = np.arange(len(batch["numbers"]))[self.rank :: self.world]
        size = self.config.piece or len(own)
        parts = [own[start : start + size] for start in range(0, len(own), size)]
        if len(parts) == 1:
            queries, documents = self._encode(self.wrapped, step, 0, batch, parts[0])
            value, vectors = self._loss(step, batch, queries, documents)
            (value * self.world).backward()  # data parallelism takes means over ranks
            return float(value.detach()), vectors
        # source: Gao et al. 2021, gradient caching: vectors without a graph, the loss's gradient with respect to them,
        # and then every piece once more with a graph, under the same dropout.
        with torch.no_grad():
            found = [self._encode(self.towers, step, n, batch, part) for n, part in enumerate(parts)]
        queries, documents = (torch.cat(rows).requires_grad_() for rows in zip(*found, strict=True))
        value, vectors = self._loss(step, batch, queries, documents)
        value.backward()
        at, each = 0, documents.shape[0] // len(own)
        for number, part in enumerate(parts):
            rows, last = slice(at, at + len(part)), number == len(parts) - 1
            quiet = contextlib.nullcontext() if last or self.world == 1 else self.wrapped.no_sync()  # type: ignore[operator]
            with quiet:
                again = self._encode(self.wrapped, step, number, batch, part)
                wanted = (queries.grad[rows], documents.grad[rows.start * each : rows.stop * each])  # type: ignore[index]
                pull = sum((new * grad).sum() for new, grad in zip(again, wanted, strict=True))
                (pull * self.world).backward()
            at += len(part)
        return float(value.detach()), vectors

    def _encode(
        self, towers: nn.Module, step: int, number: int, batch: dict[str, Any], part: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of some queries [part, d] and their documents [part * (1 + hard), d], positives before hard ones."""
        torch.manual_seed(_mixed(self.config.seed, step, self.rank, number))  # dropout, the same after a resume
        places = [place for row in part for place in (batch["places"][row], *batch["hard"][row])]
        groups = []
        for tokens in (
            self.encoder.tokens([self.data.train.texts[batch["numbers"][row]] for row in part], "query"),
            self.encoder.tokens(self.data.corpus.texts(places), "document"),
        ):
            ids, mask = tokens.batch(range(len(tokens)))
            groups.append((ids.to(self.encoder.device), mask.to(self.encoder.device)))
        found: tuple[torch.Tensor, torch.Tensor] = towers(*groups)
        return found

    def _loss(
        self, step: int, batch: dict[str, Any], queries: torch.Tensor, documents: torch.Tensor
    ) -> tuple[torch.Tensor, Candidates]:
        """The whole batch's loss from the own vectors and the other ranks'."""
        total, config = len(batch["numbers"]), self.config
        documents = documents.unflatten(0, (-1, 1 + config.negatives.hard))
        asked, found = (gathered(rows, total, self.rank, self.world) for rows in (queries, documents))
        counts = batch["allowed"].to(asked.device)
        vectors = Candidates(asked, found[:, 0], found[:, 1:], counts)
        kind: Kind = config.loss
        if step < config.negatives.warmup_share * self.steps:
            kind = EASY.get(kind, kind)
        soft, teacher = None, None
        if self.soft is not None:
            soft = self.soft.rows(batch["numbers"], batch["documents"], batch["allowed"]).to(asked.device)
        if kind == "margin_mse":
            assert self.remembered is not None
            rows = np.hstack([batch["places"][:, None], batch["hard"]])
            scores = self.remembered(np.repeat(batch["numbers"], rows.shape[1]), rows.ravel())
            teacher = torch.from_numpy(scores.reshape(rows.shape)).to(asked.device)
        value = loss(
            kind, vectors, margins=self.margins, temperature=config.temperature, soft=soft, alpha=config.soft.alpha,
            teacher=teacher, soft_temperature=config.soft.temperature,
        )  # fmt: skip
        return value, vectors

    def _watch(self, step: int, vectors: Candidates) -> None:
        seen = torch.cat([vectors.queries, vectors.positives, vectors.hard.flatten(0, 1)])
        if self.alarm.see(seen) and self.config.stop_on_collapse:
            raise UserError(
                f"step {step + 1}: collapse: for {self.alarm.patience} steps the vectors of all texts have been nearly "
                f"one (mean distance below {self.alarm.spread}); lower lr, raise the margins or use an infonce loss "
                "(stop_on_collapse=false trains on)"
            )

    def _batch(self, step: int) -> dict[str, Any]:
        """A step's pairs, hard negatives and mask: a function of seed, step and pools."""
        epoch, piece = divmod(step, self.pieces)
        order = np.random.default_rng([self.config.seed, 3, epoch]).permutation(len(self.data.pairs))
        numbers, places = self.data.pairs[np.array_split(order, self.pieces)[piece]].T
        draws = np.random.default_rng([self.config.seed, 4, step])
        hard, sources = [], dict.fromkeys(("judged", "bm25", "ann", "random"), 0)
        for number in numbers:
            relevant = self.data.train.relevant[number]
            row, said = self.pools.draw(
                int(number), self.config.negatives.hard, draws, relevant, total=len(self.data.corpus)
            )
            hard.append(row)
            for source in said:
                sources[source] += 1
        chosen = np.array(hard, dtype=np.int64).reshape(len(numbers), -1)
        mask = allowed(places.tolist(), chosen.tolist(), [self.data.train.relevant[number] for number in numbers])
        documents = np.concatenate([places, chosen.ravel()])
        return {
            "numbers": numbers, "places": places, "hard": chosen, "documents": documents, "allowed": mask,
            "sources": sources,
        }  # fmt: skip

    def measures(self, look: dict[str, float]) -> dict[str, float]:
        """What a sweep may look for: the training loss, and dev figures at the end of an epoch or before the first."""
        loss = self.rows[max(1, int(look["epoch"]) * self.pieces) - 1]["loss"]
        return {"loss": loss, **{f"dev_{name}": value for name, value in look.items() if name != "epoch"}}

    def _kept(self) -> dict[str, float]:
        """The look at the weights that are kept."""
        looks = self.looks.rows
        return self.measures(max(looks, key=lambda look: look["nDCG@10"]) if self.config.keep_best else looks[-1])

    def finish(self, folder: Path | None = None) -> dict[str, Any]:
        """Evaluate before and after with the weights to keep, all ranks together; rank 0 saves. Returns the log."""
        if self.best:
            self._load(self.best)
        self.encoder.eval()
        after = self.looks.evaluate(self.encoder)
        before = self.looks.evaluate(self._fresh().to(self.encoder.device))
        self.encoder.model = self.body
        if self.rank > 0:
            return {}
        if folder is not None:
            self.encoder.save(folder)
        return {
            "measures": self._kept(),
            "steps": self.rows, "looks": self.looks.rows, "refreshes": self.looks.refreshes, "before": before,
            "after": after, "hash": self.encoder.hash, "overlong": self.looks.overlong(),
            "soft": self.soft.facts() if self.soft else {},
            "trainable_parameters": sum(p.numel() for p in self.encoder.parameters() if p.requires_grad),
        }  # fmt: skip

    def state(self, step: int) -> dict[str, Any]:
        """What goes on from here; rank 0 has all of it."""
        if self.rank > 0:
            return {"step": step}
        log = [self.rows, self.looks.rows, self.looks.refreshes, self.pools.rows["ann"], self.alarm.low]
        return {
            "step": step, "model": self._weights(), "optimizer": self.optimizer.state_dict(),
            "best": self.best, "log": json.dumps(log),
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self._load(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.first, self.best = state["step"], state["best"]
        self.rows, self.looks.rows, self.looks.refreshes, ann, self.alarm.low = json.loads(state["log"])
        self.pools.rows["ann"] = ann

    def _look(self, epoch: int) -> None:
        """Dev figures; every rank sees the same ones."""
        if self.looks.look(epoch) and self.config.keep_best:
            self.best = copy.deepcopy(self._weights())

    def _weights(self) -> dict[str, torch.Tensor]:
        """What is trained."""
        return {name: value.detach() for name, value in self.encoder.named_parameters() if value.requires_grad}

    @torch.no_grad()
    def _load(self, weights: dict[str, torch.Tensor]) -> None:
        for name, value in self.encoder.named_parameters():
            if value.requires_grad:
                value.copy_(weights[name])

    def _fresh(self) -> Encoder:
        config = self.config
        changes = {name: getattr(config, name) for name in
                   ("pooling", "query_prefix", "document_prefix", "dimension", "max_length")}  # fmt: skip
        return Encoder.load(config.model, config.revision, **changes)

    def _soft(self) -> SoftTargets | None:
        if self.config.soft.kind == "none":
            return None
        negatives = [
            [place for source in ("judged", "bm25") for place in self.pools.rows[source][number]]
            for number in range(len(self.data.train))
        ]
        known = {*self.data.pairs[:, 1].tolist(), *(place for row in negatives for place in row)}
        everything = bool(self.config.negatives.ann)  # its own negatives may be anything
        places = np.arange(len(self.data.corpus)) if everything else np.array(sorted(known))
        pool = Pool(
            self.data.train, self.data.pairs, self.data.corpus, places, negatives,
            self._fresh().to(self.encoder.device), self.teacher,
        )  # fmt: skip
        return SoftTargets(self.config.soft, pool, self.config.seed)

    def _rate(self, step: int) -> float:
        warm = self.config.warmup_share * self.steps
        return (step + 1) / warm if step < warm else max(0.0, (self.steps - step) / max(1.0, self.steps - warm))

    def _optimizer(self) -> torch.optim.Optimizer:
        groups = []
        for flat, decay in ((False, self.config.weight_decay), (True, 0.0)):
            params = [param for param in self.encoder.parameters() if param.requires_grad and (param.dim() < 2) == flat]
            groups.append({"params": params, "lr": self.config.lr, "peak": self.config.lr, "weight_decay": decay})
        return torch.optim.AdamW(groups)


@torch.no_grad()
def _distances(vectors: Candidates) -> dict[str, float]:
    """Mean distance of queries from the three kinds of documents; of simple ones those that count."""
    table = vectors.similarities()
    count = vectors.size
    own = torch.eye(count, dtype=torch.bool, device=table.device)
    simple = vectors.allowed[:, :count] & ~own
    found = {"distance_relevant": float(1 - table.diagonal().mean())}
    found["distance_simple"] = float(1 - table[:, :count][simple].mean()) if bool(simple.any()) else float("nan")
    if vectors.hard.shape[1]:
        found["distance_hard"] = float(1 - vectors.own_hard().mean())
    return found


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
