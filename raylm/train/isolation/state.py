"""Isolation on disk: the state of a run by tensor and place, and masks as files.

Both say of every number which element of which tensor it belongs to, so that they can be read on any number of ranks
and at any ZeRO stage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from raylm.errors import UserError
from raylm.train.isolation import bits
from raylm.train.isolation.collectives import everyones
from raylm.train.isolation.fragments import Fragment, Fragments
from raylm.train.isolation.importance import Growth
from raylm.train.isolation.parts import Part

if TYPE_CHECKING:
    from raylm.train.isolation.core import Isolation

_PACKED = ("bits", "first", "first_even", "ramp")
_PLAIN = ("even", "levels")
_FORMAT = "raylm mask 1"


def collect(isolation: Isolation) -> dict[str, Any]:
    """State of this rank: plain values and tensors only."""
    return {
        "step": isolation.step,
        "refreshed_at": isolation.refreshed_at,
        "refreshes": isolation.refreshes,
        "score": isolation.config.score,
        "beta": isolation.config.beta,
        "observed": dict(isolation.importance.observed),
        "log": list(isolation.log),
        "fragments": [_fragment(part) for part in isolation.parts],
    }


def restore(isolation: Isolation, states: Sequence[dict[str, Any]]) -> None:
    """Put the states of all ranks of a run into the parts of this rank of it or of another.

    Raises:
        UserError: they are of another model, or of another score.
    """
    fragments = Fragments(_unpacked(fragment) for saved in states for fragment in saved["fragments"])
    known = isolation.config.choose == "random" or states[0]["score"] == isolation.config.score
    if not known:
        raise UserError(
            f"the isolation state holds score={states[0]['score']}, not {isolation.config.score}; go on with that "
            "score, or train from the start"
        )
    if not {part.name for part in isolation.parts} <= fragments.names:
        missing = sorted({part.name for part in isolation.parts} - fragments.names)
        raise UserError(f"the isolation state is of another model: it holds nothing of {', '.join(missing[:3])}")
    isolation.step, isolation.refreshed_at = states[0]["step"], states[0]["refreshed_at"]
    isolation.refreshes = states[0]["refreshes"]
    isolation.importance.observed = dict(states[0]["observed"])
    isolation.log = list(states[0]["log"])
    for part in isolation.parts:
        _fill(part, fragments, list(states[0]["observed"]))
    if states[0]["beta"] != isolation.config.beta:
        _rescale(isolation, Growth(states[0]["beta"]))


def save_mask(isolation: Isolation, path: Path) -> None:
    """Write the mask of all ranks to a safetensors file, from rank 0; all ranks together.

    Every tensor of the file is the mask of the model's tensor of that name, flattened, eight elements a byte, the first
    in the lowest bit; the metadata hold the shapes and the step.
    """
    mine = [
        {"name": part.name, "offset": part.segment.offset, "mask": bits.unpack(part.bits, part.length).cpu()}
        for part in isolation.parts
        if part.bits is not None
    ]
    for fragment in mine:  # bits travel, not bytes
        fragment["count"], fragment["mask"] = fragment["mask"].numel(), bits.pack(fragment["mask"])
    found = everyones(mine)
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return
    from safetensors.torch import save_file

    fragments = [
        {**fragment, "mask": bits.unpack(fragment["mask"], fragment["count"])} for held in found for fragment in held
    ]
    masks = {}
    for name, shape in isolation.shapes.items():
        mask = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool)
        for fragment in (f for f in fragments if f["name"] == name):
            mask[fragment["offset"] : fragment["offset"] + fragment["count"]] = fragment["mask"]
        masks[name] = bits.pack(mask)
    shapes = json.dumps({name: list(shape) for name, shape in isolation.shapes.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(masks, partial, {"format": _FORMAT, "shapes": shapes, "step": str(isolation.step)})
    os.replace(partial, path)


def mask_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Name to shape of the tensors that a mask file is about; reads its head alone.

    Raises:
        UserError: no such file, or not a mask.
    """
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise UserError(f"isolation.mask_file={path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"isolation.mask_file={path}: not a whole safetensors file ({error})") from None
    if metadata.get("format") != _FORMAT:
        raise UserError(f"isolation.mask_file={path}: not a mask; a finetune artefact has isolation/mask.safetensors")
    return {name: tuple(shape) for name, shape in json.loads(metadata["shapes"]).items()}


def load_mask(path: str, parts: Sequence[Part], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Take the mask of a file.

    Raises:
        UserError: the file is missing or cut short, or is about other tensors than `shapes`.
    """
    check_mask(path, shapes)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for part in parts:
            low, high = part.segment.offset, part.segment.offset + part.length
            mask = bits.window(file.get_slice(part.name)[:], low, high)
            part.bits = bits.pack(mask).to(part.param.device)


def check_mask(path: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a mask file that is not about the tensors that train.

    Raises:
        UserError: with a tensor that differs.
    """
    found = mask_shapes(path)
    for name, shape in shapes.items():
        if found.get(name) != tuple(shape):
            has = f"has it as {list(found[name])}" if name in found else "does not have it"
            raise UserError(
                f"isolation.mask_file={path}: made for another model: {name} {list(shape)} trains, and the file {has}"
            )


def _fragment(part: Part) -> Fragment:
    found: Fragment = {"name": part.name, "offset": part.segment.offset, "count": part.length}
    for task, values in part.importance.items():
        found[f"importance/{task}"] = values
    for key in (*_PACKED, *_PLAIN):
        if getattr(part, key) is not None:
            found[key] = getattr(part, key)
    for number, packed in enumerate(part.chosen):
        found[f"chosen/{number}"] = packed
    return found


def _rescale(isolation: Isolation, before: Growth) -> None:
    """Go on with a moving average of another beta."""
    importance = isolation.importance
    for task, count in importance.observed.items() if importance.watches else ():
        factor = before.unit(count) / importance.growth.unit(count)
        for part in isolation.parts:
            part.importance[task].mul_(factor)
            if part.even is not None:
                part.even.mul_(factor)


def _unpacked(fragment: Fragment) -> Fragment:
    return {
        key: bits.unpack(value, fragment["count"]) if key in _PACKED or key.startswith("chosen/") else value
        for key, value in fragment.items()
    }


def _fill(part: Part, fragments: Fragments, tasks: Sequence[str]) -> None:
    device = part.param.device
    part.importance = {}
    for task in tasks:
        values = fragments.assemble(part.segment, f"importance/{task}")
        if values is not None:
            part.importance[task] = values.to(device)
    moved = fragments.assemble(part.segment, "importance/")
    if moved is not None:
        part.importance[""] = moved.to(device)
    for key in _PACKED:
        mask = fragments.assemble(part.segment, key)
        on = "cpu" if key.startswith("first") else device
        setattr(part, key, None if mask is None else bits.pack(mask).to(on))
    for key in _PLAIN:
        values = fragments.assemble(part.segment, key)
        setattr(part, key, None if values is None else values.to(device))
    part.chosen = []
    while (mask := fragments.assemble(part.segment, f"chosen/{len(part.chosen)}")) is not None:
        part.chosen.append(bits.pack(mask).to(device))
