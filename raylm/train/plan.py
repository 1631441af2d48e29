"""Which samples every optimizer step takes, from the seed alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from raylm.train.config import FinetuneConfig


class Stream:
    """Endless passes over some samples, each in an order of its own.

    A pass holds every sample as often as the whole part of its weight says, and for the rest a draw of the samples. So
    the position in the data is the position in the stream and nothing else.
    """

    def __init__(self, members: Sequence[tuple[np.ndarray, float]], seed: int, number: int = 0) -> None:
        """Stream (samples, weight) groups; streams of another `number` are shuffled apart."""
        self._members = [(indices, weight) for indices, weight in members if len(indices)]
        self._key = [seed, number] if number else [seed]
        self.length = sum(self._copies(indices, weight) for indices, weight in self._members)
        """Samples of a pass."""
        self._pass = -1
        self._order = np.empty(0, dtype=int)

    def at(self, position: int) -> int:
        """The sample at a position, counted from 0."""
        number, place = divmod(position, self.length)
        if number != self._pass:
            self._pass, self._order = number, self._shuffled(number)
        return int(self._order[place])

    def _shuffled(self, number: int) -> np.ndarray:
        draw = np.random.default_rng([*self._key, number])
        found = []
        for indices, weight in self._members:
            rest = self._copies(indices, weight) - int(weight) * len(indices)
            found += [*[indices] * int(weight), draw.permutation(indices)[:rest]] if rest else [indices] * int(weight)
        pool = np.concatenate(found)
        return pool[draw.permutation(len(pool))]

    @staticmethod
    def _copies(indices: np.ndarray, weight: float) -> int:
        return int(weight) * len(indices) + max(round((weight - int(weight)) * len(indices)), weight < 1)


class Plan:
    """The batches of a run: of all tasks mixed, of one task each, or of one task after the other.

    Passes are laid end to end and cut into batches of the same size, the last of which may reach into one more pass.
    """

    def __init__(self, tasks: Sequence[str], config: FinetuneConfig) -> None:
        """Plan over samples that belong to `tasks`, in their order."""
        self.batch, self.tasks = config.batch_size, tasks
        self._names = [task.name for task in config.tasks] or [""]
        by_task = [np.flatnonzero(np.asarray(tasks) == name) for name in self._names]
        weights = [task.weight for task in config.tasks] or [1.0]
        self._apart = config.order != "mixed"
        if config.order == "mixed":
            self._streams = [Stream(list(zip(by_task, weights, strict=True)), config.seed)]
        else:
            self._streams = [
                Stream([(indices, weight)], config.seed, number)
                for number, (indices, weight) in enumerate(zip(by_task, weights, strict=True), start=1)
            ]
        passes = [config.epochs] * len(self._streams)
        if config.order == "sequential":
            passes = [task.epochs or config.epochs for task in config.tasks] or passes
        self._turns = self._schedule(config, passes)
        self.steps = len(self._turns)
        self._seen = _counts_before(self._turns, len(self._streams))
        self._counts = Counter(self._turns)

    def batch_at(self, step: int) -> list[int]:
        """Sample indices of step `step`, counted from 0."""
        stream, start = self._turns[step], self._seen[step] * self.batch
        return [self._streams[stream].at(position) for position in range(start, start + self.batch)]

    def epoch_at(self, step: int) -> float:
        """Passes over its data that the stream of step `step` has made after it."""
        return (self._seen[step] + 1) * self.batch / self._streams[self._turns[step]].length

    def task_at(self, step: int) -> str:
        """The task of all samples of a step; empty where they are mixed."""
        return self._names[self._turns[step]] if self._apart else ""

    def stage_at(self, step: int) -> tuple[int, int]:
        """First step and end of the stage of a step: one task where they follow each other, else the whole run."""
        if not self._sequential:
            return 0, self.steps
        first = step - self._seen[step]
        return first, first + self._counts[self._turns[step]]

    def stage_ends(self) -> frozenset[int]:
        """Steps after which a stage is over."""
        return frozenset(self.stage_at(step)[1] for step in range(self.steps))

    def _schedule(self, config: FinetuneConfig, passes: Sequence[float]) -> list[int]:
        """The stream of every step."""
        self._sequential = config.order == "sequential"
        steps = [
            max(1, math.ceil(epochs * stream.length / self.batch - 1e-9))
            for epochs, stream in zip(passes, self._streams, strict=True)
        ]
        if self._sequential:
            turns = [stream for stream, count in enumerate(steps) for _ in range(count)]
            return turns[: config.max_steps or None]
        total = min(sum(steps), config.max_steps) if config.max_steps else sum(steps)
        turns = []
        taken = [0] * len(steps)
        for step in range(total):  # always the stream that is farthest behind its share
            behind = [(step + 1) * count / sum(steps) - had for count, had in zip(steps, taken, strict=True)]
            turns.append(int(np.argmax(behind)))
            taken[turns[-1]] += 1
        return turns


def _counts_before(turns: Sequence[int], streams: int) -> list[int]:
    """For every step, how many steps before it had the same stream."""
    taken, found = [0] * streams, []
    for turn in turns:
        found.append(taken[turn])
        taken[turn] += 1
    return found
