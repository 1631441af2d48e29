"""The losses of a training's two kinds of phase, over a rank's part of a batch."""

from __future__ import annotations

import numpy as np
import torch

from raylm.srm import losses
from raylm.srm.data import Part
from raylm.srm.fusion import Fusion, TextFusion
from raylm.srm.material import Material

DRAWS = 3
"""Sets of left-out branches that a text fusion's features are computed for."""


def branch_loss(
    material: Material, part: Part, own: tuple[np.ndarray, np.ndarray], counts: tuple[int, int]
) -> torch.Tensor:
    """What branches are trained by: Bradley-Terry for those that learn preferences, square errors for ratings.

    Args:
        own: pairs and rated texts of this rank, as places in the part.
        counts: of all ranks; the sum of all ranks' losses is the mean over the batch.
    """
    config, structure = material.config, material.structure
    weights, device = config.loss, material.device
    pairs, rated = part.pairs[own[0]], part.rated[own[1]]
    places = np.concatenate([pairs.flatten(), rated])
    found = torch.zeros((), device=device)
    if not len(places):
        return found
    features = material.standardised(places)
    margins = torch.from_numpy(part.margins[own[0]]).to(device) * weights.margin if weights.margin else None
    for name in config.retrain or tuple(structure.trained):
        said = structure.trained[name](features)
        if name in material.data.columns:
            if len(rated):
                loss = losses.regression(said[pairs.size :], material.wanted(part, own[1], name))
                found = found + weights.ratings * loss * (len(rated) / counts[1])
        elif len(pairs):
            scores = said[: pairs.size].view(-1, 2)
            loss = losses.bradley_terry(scores[:, 0], scores[:, 1], margins)
            loss = loss + weights.centring * losses.centring(scores[:, 0], scores[:, 1])
            found = found + weights.pairs * loss * (len(pairs) / counts[0])
    return found


def fusion_loss(
    material: Material, values: torch.Tensor, part: Part, own: np.ndarray, *, count: int, epoch: int = -1,
    fusion: Fusion | None = None,
) -> torch.Tensor:  # fmt: skip
    """What the fusion is trained by: Bradley-Terry on its scores, with branches left out at random.

    Args:
        values: [texts, branches], by branches that have not seen the texts' prompts.
        own: pairs of this rank, as places in the part.
        count: of all ranks.
        epoch: -1 outside training: no branch is left out.
        fusion: the structure's own where none is given.
    """
    config, device = material.config, material.device
    fusion = fusion or material.structure.fusion
    pairs = part.pairs[own]
    if not len(pairs):
        return torch.zeros((), device=device)
    if isinstance(fusion, TextFusion):
        features = material.second(epoch % DRAWS if epoch >= 0 else -1, values)
        scores = fusion.score(features[torch.from_numpy(pairs.flatten())].to(device)).view(-1, 2)
    else:
        said = values[torch.from_numpy(pairs.flatten())].to(device)
        if epoch >= 0 and config.fusion.dropout:
            # Both responses lack the same branches, as they would when one is taken out for good.
            drop = torch.rand(len(pairs), said.shape[1], device=device) < config.fusion.dropout
            said = said.masked_fill(drop.repeat_interleave(2, 0), torch.nan)
        scores = fusion(material.inputs(pairs.flatten()), said, explain=False).score.view(-1, 2)
    margins = torch.from_numpy(part.margins[own]).to(device) * config.loss.margin if config.loss.margin else None
    loss = losses.bradley_terry(scores[:, 0], scores[:, 1], margins)
    loss = loss + config.loss.centring * losses.centring(scores[:, 0], scores[:, 1])
    return loss * (len(pairs) / count)
