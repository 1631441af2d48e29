"""The sets of the study as files of pairs and ratings, split by prompt."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from jobs.studies.srm import planted
from raylm.srm import backbone, cache
from raylm.srm.data import Text

TEST_SHARE = 0.25
PROMPTS = 800
"""Of the planted set."""
TOOLS = ("relevance", "coverage", "support", "style", "length", "repetition")


@dataclass(frozen=True)
class Set:
    """A set and the branches that its ratings allow."""

    name: str
    columns: tuple[str, ...]
    """Ratings that branches learn."""
    tools: tuple[str, ...] = TOOLS
    bounds: tuple[float | None, float | None] = (None, None)
    pairs_from: str = ""
    """Rating of which pairs are made; empty where people compared responses."""
    oracle: bool = True
    """Whether both responses of the pairs are rated."""
    prompts: int = 0
    """Prompts that are used, drawn by their digest; 0 uses all."""
    max_length: int = 384
    """Tokens of prompt and response that the encoder reads."""

    def branches(self) -> list[dict[str, Any]]:
        """A head that learns preferences, a wider one for the scalar model of equal cost, a head a rating, tools."""
        low, high = self.bounds
        rated = [{"name": name, "column": name, "low": low, "high": high} for name in self.columns]
        tools = [{"name": f"tool_{name}", "kind": "tool", "tool": name} for name in self.tools]
        return [{"name": "quality"}, {"name": "wide", "kind": "adapter", "rank": 16}, *rated, *tools]


SETS = {
    found.name: found
    for found in (
        Set("planted", ("relevance", "style"), ("coverage", "arithmetic", "repetition"), (1, 5)),
        Set(
            "summeval", ("coherence", "consistency", "fluency", "relevance"), TOOLS, (1, 5), "mean",
            prompts=30, max_length=256,
        ),
        Set(
            "topical_chat_usr", ("understandability", "naturalness", "coherence", "engagingness", "groundedness"),
            TOOLS, (None, None), "overall",
        ),
        Set(
            "qa_feedback", ("relevance", "factuality", "completeness"), TOOLS, (0, 1), oracle=False,
            prompts=60, max_length=256,
        ),
    )
}  # fmt: skip


def rows(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pairs and ratings of a set; pairs are empty where they are made of the ratings."""
    if name == "planted":
        return planted.make(PROMPTS, 0)
    folder = Path(os.environ["RAYLM_DATA"])
    if name == "qa_feedback":
        pairs, ratings = (_read(folder / f"reward_{kind}/qa_feedback_dev.jsonl.gz") for kind in ("pairs", "dims"))
    else:
        pairs, ratings = [], _read(folder / f"reward_dims/{name}.jsonl.gz")
    count = SETS[name].prompts
    groups = sorted({_group(row) for row in (*pairs, *ratings)}, key=lambda group: _draw("prompts", group))
    kept = set(groups[: count or len(groups)])
    return [row for row in pairs if _group(row) in kept], [row for row in ratings if _group(row) in kept]


def files(name: str, seed: int, out: Path) -> dict[str, str]:
    """Write a seed's training and test files; returns paths by config field. Test prompts are never trained on."""
    found = {}
    folder = out / "files" / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for field, all_rows in zip(("pairs", "ratings"), rows(name), strict=True):
        for part in ("", "test_"):
            own = [row for row in all_rows if _is_test(row, seed) == bool(part)]
            if own:
                path = folder / f"{part}{field}.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in own))
                found[part + field] = str(path)
    return found


class Store:
    """The untouched encoder's features of texts, kept on disk: every seed and arm reads the same ones."""

    def __init__(self, model: str, folder: Path, max_length: int) -> None:
        self.body = backbone.load(model, max_length=max_length)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            self._take(file)

    def __call__(self, texts: Sequence[Text]) -> cache.Features:
        keys = [_key(text) for text in texts]
        missing = [place for place, key in enumerate(keys) if key not in self.known]
        for start in range(0, len(missing), cache.CHUNK):
            places = missing[start : start + cache.CHUNK]
            made = cache.compute(self.body, [texts[place] for place in places])
            file = self.folder / f"{_key((keys[places[0]], str(len(places))))}.safetensors"
            save_file(
                {"raw": made.raw, "contexts": made.contexts}, file, {"keys": json.dumps([keys[p] for p in places])}
            )
            self._take(file)
        raw, contexts = zip(*(self.known[key] for key in keys), strict=True)
        return cache.Features(torch.stack(raw), torch.stack(contexts), 0, 0)

    def _take(self, file: Path) -> None:
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            keys = json.loads(opened.metadata()["keys"])
        found = load_file(file)
        self.known |= dict(zip(keys, zip(found["raw"], found["contexts"], strict=True), strict=True))


def elsewhere() -> list[dict[str, Any]]:
    """Pairs that are never trained on: helpful, honest and harmless responses."""
    return _read(Path(os.environ["RAYLM_DATA"]) / "reward_pairs/hhh_alignment.jsonl.gz")


def _is_test(row: dict[str, Any], seed: int) -> bool:
    return _draw(str(seed), _group(row)) < TEST_SHARE


def _group(row: dict[str, Any]) -> str:
    return str(row.get("group") or row["prompt"])


def _draw(salt: str, group: str) -> float:
    return int(hashlib.sha256(f"{salt}:{group}".encode()).hexdigest()[:8], 16) / 0xFFFFFFFF


def _key(text: Text) -> str:
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()[:24]


def _read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as source:
        return [json.loads(line) for line in source]
