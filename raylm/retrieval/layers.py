"""Train the upper layers of an encoder: the frozen lower ones read each text once, and their output is kept.

For the encoders of the BERT family (`embeddings` and `encoder.layer`). On few cores most of a training step is the
lower layers' forward pass; kept in memory, it is made once a text and not once a step.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from raylm.errors import UserError


class Kept(nn.Module):
    """Stands in for the embeddings of the upper layers: gives the lower layers' output, from memory where it is there.

    Frozen layers drop nothing out, so that a text always has the same output.
    """

    def __init__(self, lower: nn.Module, room: float, special: int) -> None:
        """Keep the output of `lower` in at most `room` GiB; `special` is the padding token."""
        super().__init__()
        self._lower, self._left, self._padding = [lower], room * 2**30, special  # in a list: no part of this module
        self._states: dict[bytes, torch.Tensor] = {}

    @torch.no_grad()
    def forward(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        """Token vectors [batch, tokens, hidden] for ids [batch, tokens] that are padded at the right."""
        lower, ids = self._lower[0], input_ids
        lengths = (ids != self._padding).sum(1).tolist()
        keys = [row[:length].cpu().numpy().tobytes() for row, length in zip(ids, lengths, strict=True)]
        new = [number for number, key in enumerate(keys) if key not in self._states]
        found: dict[int, torch.Tensor] = {}
        if new:
            longest = max(lengths[number] for number in new)
            part = ids[new, :longest]
            states = lower(input_ids=part, attention_mask=(part != self._padding).long()).last_hidden_state
            for number, row in zip(new, states, strict=True):
                found[number] = row[: lengths[number]].clone()
                size = found[number].numel() * found[number].element_size()
                if size <= self._left and keys[number] not in self._states:
                    self._states[keys[number]], self._left = found[number], self._left - size
        rows = [found[number] if number in found else self._states[key] for number, key in enumerate(keys)]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return nn.functional.pad(padded, (0, 0, 0, ids.shape[1] - padded.shape[1]))


def upper(model: Any, layers: int, room: float) -> Any:
    """A model with the weights of `model` that trains what is above its lowest layers, embeddings among those.

    Args:
        model: a transformers model; its lower layers are frozen by this.
        layers: how many stay as they are.
        room: GiB of memory for their output.

    Raises:
        UserError: the model is not of the BERT family, has too few layers, or its padding token may be in a text.
    """
    stack = getattr(getattr(model, "encoder", None), "layer", None)
    padding = getattr(model.config, "pad_token_id", None)
    if not isinstance(stack, nn.ModuleList) or not hasattr(model, "embeddings") or padding is None:
        raise UserError("freeze_layers is for encoders of the BERT family with a padding token; leave it at 0")
    if layers >= len(stack):
        raise UserError(f"freeze_layers={layers}: this encoder has {len(stack)} layers, and one at least must train")
    model.requires_grad_(True)
    for module in (model.embeddings, *stack[:layers], *filter(None, [getattr(model, "pooler", None)])):
        module.requires_grad_(False)
    lower, high = _shallow(model, stack[:layers]), _shallow(model, stack[layers:])
    high._modules["embeddings"] = Kept(lower.eval(), room, padding)
    return high


def _shallow(model: Any, layers: nn.ModuleList) -> Any:
    """The same modules in a new frame, with some of the layers."""
    found = copy.copy(model)
    found._modules = dict(model._modules)
    found._modules["encoder"] = copy.copy(model.encoder)
    found.encoder._modules = dict(model.encoder._modules)
    found.encoder._modules["layer"] = nn.ModuleList(layers)
    return found
