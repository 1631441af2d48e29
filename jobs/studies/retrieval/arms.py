"""The study's arms, and one run of one of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from jobs.studies.retrieval.world import World, mean_ndcg
from raylm.config import build
from raylm.retrieval.config import RetrieverConfig
from raylm.retrieval.corpus import Queries
from raylm.retrieval.encoder import Encoder
from raylm.retrieval.looks import Looks
from raylm.retrieval.mine import negatives
from raylm.retrieval.run import Run
from raylm.retrieval.soft import Pool, SoftTargets

MARGINS = [
    {"hard": 0.05, "simple": 0.15, "between": 0.05},
    {"hard": 0.1, "simple": 0.3, "between": 0.1},
    {"hard": 0.2, "simple": 0.5, "between": 0.2},
]
BY_MARGIN: list[dict[str, Any]] = [{"margins": each} for each in MARGINS]
BY_TEMPERATURE: list[dict[str, Any]] = [{"temperature": each} for each in (0.02, 0.05, 0.1)]
LOSSES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "triplet_simple": ("triplet", BY_MARGIN),
    "triplet_own": ("triplet_own", BY_MARGIN),
    "triplet_both": ("triplet_hard", BY_MARGIN),
    "quadruplet": ("quadruplet", BY_MARGIN),
    "quadruplet_b": ("quadruplet_b", BY_MARGIN),
    "infonce": ("infonce", BY_TEMPERATURE),
    "infonce_hard": ("infonce_hard", BY_TEMPERATURE),
    "margin_mse": ("margin_mse", [{"lr": each} for each in (3e-4, 1e-3, 3e-3)]),
}
"""Arm to its loss and the settings that it chooses from on dev, equally many for each. triplet_both is the quadruplet
with lambda 0."""
SOFT: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "uniform": {"kind": "uniform"},
    "glle": {"kind": "glle"},
    "propagation": {"kind": "propagation"},
    "bm25": {"kind": "bm25"},
    "embedding": {"kind": "embedding"},
    "le": {"kind": "enhanced"},
    "le_permuted": {"kind": "enhanced", "permute": True},
    "le_not_crossfitted": {"kind": "enhanced", "folds": 1},
    "le_bm25_terms": {"kind": "enhanced", "terms": "bm25"},
    "grades": {"kind": "embedding"},
}
"""Arm to its soft targets, all of the same entropy and share. grades is an oracle: scores are people's grades of the
training queries, which says how much any soft target could help here."""
ALPHAS = (0.1, 0.3, 1.0)
"""Strengths that every arm with soft targets chooses from on dev."""


class Cell(NamedTuple):
    """What a run is of."""

    seed: int
    size: int
    """Training queries."""
    loss: str
    setting: dict[str, Any]
    """Of LOSSES."""
    soft: str = "none"
    alpha: float = 0.0


@dataclass(frozen=True)
class Tier:
    """One size of the study."""

    name: str
    settings: Mapping[str, Any]
    sizes: tuple[int, ...]
    """Training queries; the first is the standard setting, the last the cold start."""
    epochs: Mapping[int, int]
    losses: tuple[str, ...]
    soft: tuple[str, ...]
    backbones: tuple[str, ...] = ("infonce_hard", "quadruplet")
    """Losses that soft targets are tried with."""


TIERS = {
    "adapter": Tier(
        "retrieval",
        {"adapter": True, "lr": 1e-3, "batch_size": 16, "max_length": 48, "weight_decay": 0.0, "titles": True,
         "negatives": {"hard": 1, "judged": 0.5, "bm25": 0.5, "depth": 20, "keep": 10, "teacher": "all-minilm-l6-v2",
                       "segment": "words", "stem": "english"}},
        (256, 32), {256: 4, 32: 16}, tuple(LOSSES), tuple(SOFT),
    ),
    "layers": Tier(
        "retrieval_layers",
        {"freeze_layers": 5, "lr": 1e-4, "batch_size": 16, "max_length": 48, "titles": True, "cache_gib": 4.0,
         "negatives": {"hard": 1, "judged": 0.5, "bm25": 0.5, "depth": 20, "keep": 10, "teacher": "all-minilm-l6-v2",
                       "segment": "words", "stem": "english"}},
        (256,), {256: 3}, ("infonce_hard", "quadruplet"), ("none", "le"),
    ),
}  # fmt: skip


class Arms:
    """All runs of a tier and a seed; what they share is made once."""

    def __init__(self, tier: Tier, made: World) -> None:
        """Hold what is shared."""
        self.tier, self.world = tier, made
        self._mined: dict[tuple[int, int], Any] = {}
        self._soft: dict[tuple[Any, ...], SoftTargets] = {}

    def config(self, seed: int, size: int, **changes: Any) -> RetrieverConfig:
        """Of a run."""
        epochs = {"seed": seed, "max_queries": size, "epochs": self.tier.epochs[size]}
        return build(RetrieverConfig, {**self.world.settings, **epochs, **changes})

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train once; figures on dev and, of the epoch that dev chose, of every test query."""
        start = time.monotonic()
        soft = {**SOFT[cell.soft], "alpha": cell.alpha}
        config = self.config(cell.seed, cell.size, loss=LOSSES[cell.loss][0], soft=soft, **cell.setting)
        made = self.run_of(config, cell.soft)
        made.train(lambda row: None, lambda step, state: None)
        if made.best:
            made._load(made.best)
        made.encoder.eval()
        test = made.looks.evaluate(made.encoder)
        last = {key: round(value, 4) for key, value in made.rows[-1].items() if key.startswith("distance")}
        return {
            **cell._asdict(),
            "dev": max(row["nDCG@10"] for row in made.looks.rows), "steps": made.steps,
            "seconds": round(time.monotonic() - start, 1), **last, **figures(test),
        }  # fmt: skip

    def run_of(self, config: RetrieverConfig, soft: str) -> Run:
        """A run of this world."""
        world, data = self.world, self.world.data(config)
        key = (config.seed, config.max_queries)
        if key not in self._mined:
            self._mined[key] = negatives(config.negatives, data.train, data.corpus, world.bm25, world.teacher)
        world.encoder.adapter = None
        encoder = world.encoder if config.adapter else Encoder.load(config.model, max_length=config.max_length)
        targets = self.soft(config, data, soft) if soft != "none" else None
        made = Run(config, data, self._mined[key], soft=targets, teacher=world.teacher, encoder=encoder)
        if config.adapter:
            made.looks = KnownLooks(made.looks, world)
        return made

    def soft(self, config: RetrieverConfig, data: Any, name: str) -> SoftTargets:
        """Soft targets of an arm; permuted ones are the same ones in another order."""
        key = (config.seed, config.max_queries, name)
        if key not in self._soft:
            table = self._mined[config.seed, config.max_queries]
            rows = known_negatives(table, data.train, data.corpus)
            places = np.array(sorted({*data.pairs[:, 1].tolist(), *(place for row in rows for place in row)}))
            # The untouched encoder: without an adapter, its pooled vectors are in memory.
            pool = Pool(data.train, data.pairs, data.corpus, places, rows, self.world.encoder, self.world.teacher,
                        self.world.memory)  # fmt: skip
            self._soft[key] = SoftTargets(config.soft, pool, config.seed)
            if name == "grades":
                self._soft[key]._table = grades(data.train, places)
        found = self._soft[key]
        found.config = config.soft
        return found


class KnownLooks(Looks):
    """Looks through an adapter at vectors that are in memory."""

    def __init__(self, looks: Looks, world: World) -> None:
        """Stand in for the looks of a run."""
        super().__init__(looks.config, looks.data, looks.encoder, (0, 1), looks.teacher)
        self.world = world

    def vectors(self, encoder: Encoder) -> np.ndarray:
        """Of the whole corpus."""
        if not hasattr(self.world, "_pooled"):
            texts = self.data.corpus.texts(range(len(self.data.corpus)))
            tokens = encoder.tokens(texts)
            assert encoder._pooled is not None
            keys = [np.array(ids, dtype=np.int64).tobytes() for ids in tokens.ids]
            self.world._pooled = torch.stack([encoder._pooled[key] for key in keys])  # type: ignore[attr-defined]
        assert encoder.adapter is not None
        with torch.inference_mode():
            found = encoder.adapter(self.world._pooled)  # type: ignore[attr-defined]
            vectors: np.ndarray = torch.nn.functional.normalize(found, dim=-1).numpy()
        return vectors


def grades(asked: Queries, places: np.ndarray) -> np.ndarray:
    """People's grades of documents at some places, [queries, places]; 0 where there is none."""
    found = np.zeros((len(asked), len(places)), np.float32)
    for number, own in enumerate(asked.grades):
        for place, grade in own.items():
            column = int(np.searchsorted(places, place))
            if column < len(places) and places[column] == place:
                found[number, column] = grade
    return found


def known_negatives(table: Any, asked: Queries, corpus: Any) -> list[list[int]]:
    """Places of the mined negatives of every query."""
    at, numbers = {name: n for n, name in enumerate(corpus.ids)}, {name: n for n, name in enumerate(asked.ids)}
    rows: list[list[int]] = [[] for _ in asked.ids]
    kept = table.filter(table["kept"])
    for query, document in zip(kept["query"].to_pylist(), kept["document"].to_pylist(), strict=True):
        if at[document] not in rows[numbers[query]]:
            rows[numbers[query]].append(at[document])
    return rows


def figures(test: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Means over the test queries, and nDCG@10 of each."""
    names = ("RR@10", "R@10", "R@100")
    found: dict[str, Any] = {name: float(np.mean([row[name] for row in test.values()])) for name in names}
    return {"ndcg": mean_ndcg(test), **found, "each": [round(row["nDCG@10"], 4) for _, row in sorted(test.items())]}
