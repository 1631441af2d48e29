"""A pull towards earlier weights: baselines of isolation.

    L2 to the start:  w/2 sum_j (theta_j - theta0_j)^2
    EWC:              w/2 sum_j F_j (theta_j - theta*_j)^2          (source: arXiv 1612.00796, equation 3)

F is the mean of squared gradients of the optimizer steps of the tasks before, each task's mean divided by its mean over
all parameters, so that one weight fits any scale of the loss (source: our choice). A squared batch gradient is not the
Fisher information: it counts a direction that the samples of a batch share more than one in which they differ. After
several tasks the pull is towards the end of the last, with the sum of all F (source: our choice, after online EWC,
arXiv 1805.06370).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from raylm.train.config import PenaltyConfig
from raylm.train.isolation.collectives import total
from raylm.train.isolation.fragments import Fragment, Fragments, Segment
from raylm.train.isolation.parts import piece

Held = Sequence[tuple[torch.Tensor, Sequence[Segment]]]


class Penalty:
    """Adds the gradient of the penalty to that of the loss, on a rank's flat parameters."""

    def __init__(self, config: PenaltyConfig, held: Held) -> None:
        """Pull `held` towards where it is now (l2_init), or to where `settle` finds it (ewc)."""
        self.config, self.held = config, held
        self.ewc = config.kind == "ewc"
        flats = [flat.detach().view(-1) for flat, _ in held]
        self.anchors = [flat.clone().float() for flat in flats]
        self.fisher = [torch.zeros_like(anchor) for anchor in self.anchors] if self.ewc else []
        self.running = [torch.zeros_like(anchor) for anchor in self.anchors] if self.ewc else []
        """Sum of squared gradients of the steps since the last `settle`."""
        self.steps = 0
        self.settled = 0

    @torch.no_grad()
    def add(self) -> None:
        """Count the gradients of this step, and add that of the penalty to them."""
        self.steps += 1
        for number, (flat, _) in enumerate(self.held):
            if flat.grad is None:
                continue
            values, gradients, anchor = flat.detach().view(-1), flat.grad.view(-1), self.anchors[number]
            size = piece(flat.device)
            for start in range(0, flat.numel(), size):
                window = slice(start, start + size)
                if self.ewc:
                    gradient = gradients[window].float()
                    self.running[number][window].addcmul_(gradient, gradient)
                    if not self.settled:
                        continue
                pull = values[window].float() - anchor[window]
                if self.ewc:
                    pull.mul_(self.fisher[number][window])
                gradients[window].add_(pull, alpha=self.config.weight)

    @torch.no_grad()
    def settle(self) -> None:
        """End a task: from now on the pull is towards these weights; all ranks together."""
        if not self.ewc or not self.steps:
            return
        found = torch.zeros(2, dtype=torch.float64)
        for running, (_, segments) in zip(self.running, self.held, strict=True):
            for segment in segments:
                part = running[segment.start : segment.start + segment.length]
                found += torch.tensor([float(part.sum(dtype=torch.float64)), segment.length])
        found = total(found)
        mean = float(found[0] / found[1])
        for number, (flat, _) in enumerate(self.held):
            self.fisher[number].add_(self.running[number], alpha=1 / mean if mean else 0.0)
            self.running[number].zero_()
            self.anchors[number].copy_(flat.detach().view(-1))
        self.steps, self.settled = 0, self.settled + 1

    def state_dict(self) -> dict[str, Any]:
        """State of this rank, by tensor and place."""
        fragments: list[Fragment] = []
        for number, (_, segments) in enumerate(self.held):
            for segment in segments:
                window = slice(segment.start, segment.start + segment.length)
                fragment: Fragment = {"name": segment.name, "offset": segment.offset}
                for key in ("anchors", "fisher", "running"):
                    if getattr(self, key):
                        fragment[key] = getattr(self, key)[number][window]
                fragments.append(fragment)
        return {"steps": self.steps, "settled": self.settled, "fragments": fragments}

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Restore the states of all ranks, however many there were."""
        self.steps, self.settled = states[0]["steps"], states[0]["settled"]
        fragments = Fragments(fragment for state in states for fragment in state["fragments"])
        for number, (flat, segments) in enumerate(self.held):
            for segment in segments:
                window = slice(segment.start, segment.start + segment.length)
                for key in ("anchors", "fisher", "running"):
                    values = fragments.assemble(segment, key)
                    if values is not None:
                        getattr(self, key)[number][window] = values.to(flat.device)
