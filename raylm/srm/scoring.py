"""Scoring of many texts on a pool of actors: committed batch by batch, gone on with after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from raylm.errors import UserError
from raylm.llm.config import ComputeConfig
from raylm.srm.data import Text
from raylm.storage import Store
from raylm.units import Unit, check_failures, read_unit, run_units, unit_key

TEXTS_PER_UNIT = 64


class ScoreWorker:
    """Scores batches of texts with one reward model."""

    def __init__(self, model: str, threads: int, device: str, own_tools: bool) -> None:
        """Work with a model's directory."""
        self.path, self.threads, self.device, self.own_tools = model, threads, device, own_tools
        self.model: Any = None

    async def start(self) -> None:
        """Load the model."""
        import torch

        from raylm.srm.model import RewardModel

        torch.set_num_threads(self.threads)
        self.model = RewardModel.load(self.path, device=self.device, own_tools=self.own_tools)

    async def run(self, unit: Unit, store: Store) -> tuple[pa.Table, dict[str, Any]]:
        """The scores of a batch."""
        import asyncio

        texts = [(prompt, response) for prompt, response in unit.payload["texts"]]
        scores = await asyncio.to_thread(self.model.score_batch, texts)
        rows = [
            {
                "score": said.score,
                "truncated": said.truncated,
                "flags": list(said.flags),
                **{f"dimension_{name}": said.dimensions.get(name) for name in self.model.dimensions},
                **{f"attribution_{name}": said.attribution[name] for name in self.model.dimensions},
            }
            for said in scores
        ]
        return pa.Table.from_pylist(rows, schema=schema(self.model.dimensions)), {"texts": len(rows)}

    async def close(self) -> None:
        """Free the model."""
        self.model = None


def schema(dimensions: Sequence[str]) -> pa.Schema:
    """Columns of scores: score, truncated, flags, and two of every branch."""
    branches = [(f"{kind}_{name}", pa.float64()) for kind in ("dimension", "attribution") for name in dimensions]
    return pa.schema([("score", pa.float64()), ("truncated", pa.bool_()), ("flags", pa.list_(pa.string())), *branches])


def score_all(
    model: str, texts: Sequence[Text], store: Store, compute: ComputeConfig, *, own_tools: bool, label: str
) -> tuple[pa.Table, float]:
    """Scores of all texts, in their order, and the seconds it took.

    Args:
        model: directory of the reward model.
        store: of the stage; batches that it holds already are not scored again.
        own_tools: see `RewardModel.load`.
        label: of the progress line.

    Raises:
        UserError: a batch failed.
    """
    starts = range(0, len(texts), TEXTS_PER_UNIT)
    units = [
        Unit(unit_key("score", n), {"texts": [list(text) for text in texts[n : n + TEXTS_PER_UNIT]]}) for n in starts
    ]
    device = "cuda" if compute.gpus else "cpu"
    arguments = {"model": model, "threads": max(1, int(compute.cpus)), "device": device, "own_tools": own_tools}
    done = run_units(units, ScoreWorker, arguments, store, compute, label=label, noun="batches of texts")
    check_failures(done, len(units), 0.0, store, "batches of texts")
    return pa.concat_tables([read_unit(store, unit.key) for unit in units]), done.seconds


def refuse_truncated(scores: pa.Table) -> None:
    """Refuse texts that were cut.

    Raises:
        UserError: there are some.
    """
    cut = [n for n, truncated in enumerate(scores.column("truncated").to_pylist(), start=1) if truncated]
    if cut:
        raise UserError(
            f"{len(cut)} of {scores.num_rows} texts are longer than the model's context, first text {cut[0]}; shorten "
            "them, or score them with on_truncated=flag"
        )
