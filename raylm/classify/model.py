"""An encoder with a head for the labels, and the directory that it is kept in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from raylm.errors import UserError
from raylm.llm import quick
from raylm.llm.tokens import Tokens

__all__ = ["TextClassifier", "Tokens", "encode", "load", "probabilities", "save"]
SETTINGS, HEADS = "classifier.json", "heads.safetensors"


class TextClassifier(nn.Module):
    """Token vectors, pooled, through linear heads."""

    def __init__(self, encoder: Any, labels: Sequence[str], *, pooling: str, max_length: int, heads: int = 1) -> None:
        """Put fresh heads on an encoder; the second one is for the published form of keyword smoothing."""
        super().__init__()
        self.encoder, self.labels, self.pooling, self.max_length = encoder, tuple(labels), pooling, max_length
        self.heads = nn.ModuleList(nn.Linear(encoder.config.hidden_size, len(labels)) for _ in range(heads))

    def pool(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Vectors of texts, [batch, hidden], from ids and mask [batch, tokens]."""
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.pooling == "cls":
            return states[:, 0]
        weights = mask[..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp_min(1.0)

    def forward(
        self, ids: torch.Tensor | None = None, mask: torch.Tensor | None = None, pooled: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Logits of every head, [batch, labels] each, from ids and mask or from pooled vectors [batch, hidden]."""
        if pooled is None:
            assert ids is not None
            assert mask is not None
            pooled = self.pool(ids, mask)
        return [head(pooled) for head in self.heads]


@torch.no_grad()
def encode(model: TextClassifier, tokens: Tokens, batch: int = 128) -> np.ndarray:
    """Pooled vectors of all texts, [texts, hidden], float64."""
    return _in_batches(model, tokens, batch, model.pool)


@torch.no_grad()
def probabilities(model: TextClassifier, tokens: Tokens, batch: int = 128) -> np.ndarray:
    """Of every label for all texts, [texts, labels], by the first head."""
    return _in_batches(model, tokens, batch, lambda ids, mask: torch.softmax(model(ids, mask)[0].double(), -1))


def _in_batches(model: TextClassifier, tokens: Tokens, batch: int, function: Any) -> np.ndarray:
    """A function of all texts, in batches of like lengths; training mode is put back afterwards."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    found: list[Any] = [None] * len(tokens)
    for places in tokens.by_length(batch):
        ids, mask = tokens.batch(places)
        for place, row in zip(places, function(ids.to(device), mask.to(device)).double().cpu().numpy(), strict=True):
            found[place] = row
    model.train(training)
    return np.stack(found)


def save(model: TextClassifier, tokenizer: Any, folder: Path) -> None:
    """Write a directory that `load` reads; the encoder in it is one that transformers loads by itself."""
    model.encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file({name: value.contiguous() for name, value in model.heads.state_dict().items()}, folder / HEADS)
    settings = {"labels": model.labels, "pooling": model.pooling, "max_length": model.max_length, "format": 1}
    (folder / SETTINGS).write_text(json.dumps(settings | {"heads": len(model.heads)}, indent=1))


def load(folder: str | Path) -> tuple[TextClassifier, Any]:
    """A saved classifier, ready to predict, and its tokenizer.

    Raises:
        UserError: the directory is not one that `save` wrote, or its heads are of other labels.
    """
    quick.without_sklearn()
    from transformers import AutoModel, AutoTokenizer

    place = Path(folder)
    if not (place / SETTINGS).is_file() or not (place / HEADS).is_file():
        raise UserError(f"{folder}: not a classifier's directory ({SETTINGS} or {HEADS} is missing)")
    said = json.loads((place / SETTINGS).read_text())
    encoder = AutoModel.from_pretrained(place, dtype=torch.float32, use_safetensors=True)
    model = TextClassifier(
        encoder, said["labels"], pooling=said["pooling"], max_length=said["max_length"], heads=said["heads"]
    )
    heads = load_file(place / HEADS)
    expected = {name: value.shape for name, value in model.heads.state_dict().items()}
    if {name: value.shape for name, value in heads.items()} != expected:
        raise UserError(f"{place / HEADS}: its shapes do not fit {len(model.labels)} labels; copy the model again")
    model.heads.load_state_dict(heads)
    return model.eval(), AutoTokenizer.from_pretrained(place)
