"""At which steps the mask is made anew, and how large it is."""

from __future__ import annotations

import math

from raylm.errors import UserError
from raylm.train.config import IsolationConfig


class Schedule:
    """Resolved for a run of a known length: refreshes after these optimizer steps, counted from 1."""

    def __init__(self, config: IsolationConfig, steps: int) -> None:
        """Resolve shares of steps.

        Raises:
            UserError: the run is too short for its masks.
        """
        self.config, self.steps = config, steps
        self.warmup = max(1, count_steps(config.warmup, steps))
        self.refreshes = self._refreshes()
        if not config.enabled or config.protect == 0 or config.source == "file":
            return
        if self.warmup >= steps:
            raise UserError(
                f"isolation.warmup={config.warmup:g}: the first mask would come at the end of a run of {steps} steps; "
                "lower it, give a share below 1, or set isolation.enabled=false"
            )
        if config.source == "evolving" and count_steps(config.refresh_every, steps) > steps:
            raise UserError(
                f"isolation.refresh_every={config.refresh_every:g} is more than the run's {steps} steps; lower it, "
                "give a share below 1, or set isolation.source=static"
            )

    def due(self, step: int) -> bool:
        """Whether the mask is made anew after a step."""
        return step in self.refreshes

    def share(self, step: int) -> float:
        """Share of the parameters that a mask made after a step protects."""
        config = self.config
        if config.protect_schedule == "constant":
            return config.protect
        left = max(1, self.steps - self.warmup)
        ramp = left if config.protect_ramp == 1 else count_steps(config.protect_ramp, self.steps)
        done = min(1.0, max(0, step - self.warmup) / ramp)
        return between(config.protect_schedule, config.protect_start, config.protect, done)

    def _refreshes(self) -> frozenset[int]:
        config = self.config
        if not config.enabled or config.protect == 0 or config.source == "file":
            return frozenset()
        found, at = [], self.warmup
        while at < self.steps:
            found.append(at)
            if config.source == "static":
                break
            first, last = (
                max(1, count_steps(value, self.steps)) for value in (config.refresh_every, config.refresh_end)
            )
            at += max(1, round(between(config.refresh_schedule, first, last, at / self.steps)))
        return frozenset(found)


def between(schedule: str, start: float, end: float, done: float) -> float:
    """Value at a share `done` of the way; constant stays at the start."""
    weight = {"constant": 0.0, "linear": done, "cosine": 0.5 * (1 - math.cos(math.pi * done))}[schedule]
    return start + (end - start) * weight


def count_steps(value: float, steps: int) -> int:
    """A number of steps that may be given as a share of all of them, below 1."""
    return round(value * steps) if value < 1 else int(value)
