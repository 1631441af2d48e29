"""The frozen backbone's features of all texts: computed once, in chunks on disk that a killed run goes on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from raylm.srm.backbone import Backbone, Pair
from raylm.srm.data import Text
from raylm.train.isolation.collectives import everyones

CHUNK, BATCH = 256, 16
Count = Callable[[int, int], None]
"""Gets how many texts are done, and of how many."""


@dataclass(frozen=True)
class Features:
    """What the backbone says of texts."""

    raw: torch.Tensor
    """[texts, width]."""
    contexts: torch.Tensor
    """[texts, hidden]."""
    cut_prompts: int
    cut_responses: int

    def take(self, places: Sequence[int]) -> Features:
        """Some of the texts."""
        index = torch.tensor(list(places), dtype=torch.long)
        return Features(self.raw[index], self.contexts[index], self.cut_prompts, self.cut_responses)


def compute(
    backbone: Backbone,
    texts: Sequence[Text],
    notes: Sequence[str] = (),
    *,
    folder: Path | None = None,
    ranks: tuple[int, int] = (0, 1),
    tell: Count | None = None,
) -> Features:
    """Features of texts, with notes behind their prompts where they are given.

    Args:
        folder: where chunks are kept, on a disk that all ranks share; None keeps none, and each rank computes all.
        ranks: this rank, and how many there are: each computes its share of the chunks and reads the others'.
        tell: gets how many texts this rank has computed, and how many it has to, after every batch.
    """
    rank, world = ranks if folder is not None else (0, 1)
    rows = zip(texts, notes or [""] * len(texts), strict=True)
    pairs = [backbone.tokenize(prompt, response, note) for (prompt, response), note in rows]
    order = sorted(range(len(pairs)), key=lambda place: (len(pairs[place].ids), place))
    chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
    files = [_file(folder, [pairs[place] for place in chunk]) for chunk in chunks]
    found: dict[int, dict[str, torch.Tensor]] = {}
    own = [number for number in range(rank, len(chunks), world) if not ((file := files[number]) and file.is_file())]
    done, count = 0, sum(len(chunks[number]) for number in own)

    def on_batch(size: int) -> None:
        nonlocal done
        done += size
        if tell is not None:
            tell(done, count)

    for number in own:
        file = files[number]
        found[number] = _chunk(backbone, [pairs[place] for place in chunks[number]], on_batch)
        if file is not None:
            scratch = file.with_suffix(f".{rank}")
            save_file(found.pop(number), scratch)
            scratch.rename(file)
    if folder is not None:
        everyones(None)  # until the others' chunks are there
    raw, contexts = torch.zeros(len(texts), backbone.width), torch.zeros(len(texts), backbone.hidden)
    for number, (chunk, file) in enumerate(zip(chunks, files, strict=True)):
        part = load_file(file) if file is not None else found[number]
        raw[chunk], contexts[chunk] = part["raw"], part["contexts"]
    return Features(raw, contexts, sum(p.cut_prompt for p in pairs), sum(p.cut_response for p in pairs))


@torch.no_grad()
def _chunk(backbone: Backbone, pairs: Sequence[Pair], on_batch: Callable[[int], None]) -> dict[str, torch.Tensor]:
    training = backbone.training
    backbone.eval()
    raw, contexts = [], []
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        raw.append(backbone.features(backbone.batch(batch)).cpu())
        contexts.append(backbone.contexts(batch).cpu())
        on_batch(len(batch))
    backbone.train(training)
    return {"raw": torch.cat(raw), "contexts": torch.cat(contexts)}


def _file(folder: Path | None, pairs: Sequence[Pair]) -> Path | None:
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    said = json.dumps([[pair.ids, pair.start, len(pair.context)] for pair in pairs])
    return folder / f"{hashlib.sha256(said.encode()).hexdigest()[:20]}.safetensors"
