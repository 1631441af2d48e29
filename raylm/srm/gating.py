"""Whether the fusion's weights may depend on the prompt, decided on prompts that a trial fusion has not seen."""

from __future__ import annotations

import copy

import numpy as np
import torch

from raylm.srm import fitting, phases
from raylm.srm.data import Part
from raylm.srm.fusion import AdditiveFusion
from raylm.srm.material import Material
from raylm.srm.phases import Phase
from raylm.train.isolation.collectives import total

PAIRS = 4_000
"""Training pairs that the trials take at most; more would only make them slow."""


def trial(material: Material, values: torch.Tensor, phase: Phase, folds: np.ndarray) -> dict[str, float]:
    """Loss on pairs of held-out prompts, nats a pair, with `constant` weights and with those of a `prompt` gate.

    Each fold of the prompts is held out once; as training keeps its best epoch, the loss is that of the epoch that is
    best over all folds together. The fusion starts from the weights that it has now. All ranks get the same numbers.

    Args:
        values: [texts, branches], by branches that have not seen the texts' prompts.
        phase: the fusion's.
        folds: [texts].
    """
    fusion = material.structure.fusion
    assert isinstance(fusion, AdditiveFusion)
    part = _sample(phase.part, material.config.seed)
    sums: dict[str, list[float]] = {}
    for name, gated in (("constant", 0.0), ("prompt", 1.0)):
        curves = []
        for fold in np.unique(folds):
            learned, held = part.within(folds != fold), part.within(folds == fold)
            if len(learned.pairs) and len(held.pairs):
                own = copy.deepcopy(fusion)
                own.gated.fill_(gated)
                curves.append(_losses(material, values, own, phase, (learned, held)))
        sums[name] = [float(np.sum(epoch)) for epoch in zip(*curves, strict=True)]
    pairs = max(1, len(part.pairs))
    found = {name: min(each, default=0.0) / pairs for name, each in sums.items()}
    # One rank decides: sums may round differently on another kind of processor.
    return {
        name: float(total(torch.tensor(value if material.ranks[0] == 0 else 0.0, dtype=torch.float64)))
        for name, value in found.items()
    }


def _sample(part: Part, seed: int) -> Part:
    if len(part.pairs) <= PAIRS:
        return part
    chosen = np.sort(np.random.default_rng([seed, 11]).permutation(len(part.pairs))[:PAIRS])
    return Part(part.pairs[chosen], part.margins[chosen], part.rated, part.ratings)


def _losses(
    material: Material, values: torch.Tensor, fusion: AdditiveFusion, phase: Phase, parts: tuple[Part, Part]
) -> list[float]:
    """Summed loss on the held-out pairs after every epoch of training on the others."""
    config, (learned, held) = material.config, parts
    pieces = max(1, -(-len(learned.pairs) // config.batch_size))
    own = Phase("fusion", -1, learned, 0, phase.epochs, pieces)
    optimizer = phases.fusion_optimizer(fusion, config)
    found = []
    torch.manual_seed(config.seed)  # of what dropout leaves out
    for step in range(own.end):
        pairs, _ = own.batch(step, config.seed)
        phases.set_rate(optimizer, step, own, config.warmup_share)
        loss = fitting.fusion_loss(material, values, learned, pairs, count=len(pairs), epoch=0, fusion=fusion)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if own.ends_epoch(step):
            everything = np.arange(len(held.pairs))
            with torch.no_grad():
                found.append(float(fitting.fusion_loss(material, values, held, everything, count=1, fusion=fusion)))
    return found
