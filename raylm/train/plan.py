"""Which samples every optimizer step takes, from the seed alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from raylm.train.config import FinetuneConfig
from raylm.train.repair import Extras, apart

Group = tuple[np.ndarray, float]
"""Samples and how often a pass holds each of them."""


class Stream:
    """Endless passes over some samples, each in an order of its own.

    A pass holds every sample as often as the whole part of its weight says, and for the rest a draw of the samples. So
    the position in the data is the position in the stream and nothing else.
    """

    def __init__(
        self,
        members: Sequence[Group],
        seed: int,
        number: int = 0,
        *,
        rivals: dict[int, frozenset[int]] | None = None,
        batch: int = 1,
    ) -> None:
        """Stream groups of samples; streams of another `number` are shuffled apart.

        Args:
            members: the groups.
            seed: of all orders.
            number: of the stream.
            rivals: samples that are in no batch with the ones they stand for.
            batch: samples of a batch.
        """
        self._rivals, self._batch = rivals or {}, batch
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
            self._pass, self._order = number, self._arranged(number)
        return int(self._order[place])

    def _arranged(self, number: int) -> np.ndarray:
        """The order of a pass. With rivals it depends on the batch that the pass before leaves open."""
        if not self._rivals:
            return self._shuffled(number)
        tail: list[int] = []
        order = np.empty(0, dtype=int)
        for each in range(number + 1):
            open_places = each * self.length % self._batch
            carry = tail[len(tail) - open_places :]
            order = apart(self._shuffled(each), self._rivals, self._batch, carry)
            tail = [*tail, *order.tolist()][-self._batch :]
        return order

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

    Passes are laid end to end and cut into batches of the same size, the last of which may reach into one more pass. A
    repair plan may put a stage of documents first, and batches of replayed samples between the others.
    """

    def __init__(self, tasks: Sequence[str], config: FinetuneConfig, extras: Extras | None = None) -> None:
        """Plan over samples that belong to `tasks`, in their order."""
        extras = extras or Extras()
        self.batch, self.tasks = config.batch_size, tasks
        self._names = [task.name for task in config.tasks] or [""]
        self._apart = config.order != "mixed"
        self._streams = self._main_streams(config, extras)
        passes = [config.epochs] * len(self._streams)
        if config.order == "sequential":
            passes = [task.epochs or config.epochs for task in config.tasks] or passes
        turns = self._schedule(config, passes)
        stages = list(turns) if self._sequential else [0] * len(turns)
        turns, stages = self._with_replay(turns, stages, config, extras)
        turns, stages = self._with_documents(turns, stages, config, extras)
        self._turns, self._stages = turns, stages
        self.steps = len(self._turns)
        self._seen = _counts_before(self._turns, len(self._streams))
        self._bounds = {stage: (stages.index(stage), len(stages) - stages[::-1].index(stage)) for stage in set(stages)}

    def _main_streams(self, config: FinetuneConfig, extras: Extras) -> list[Stream]:
        groups = []
        for name, weight in zip(self._names, [task.weight for task in config.tasks] or [1.0], strict=True):
            own = np.flatnonzero(np.asarray(self.tasks) == name)
            by_weight: dict[float, list[int]] = {1.0: []}
            for place in own.tolist():
                by_weight.setdefault(extras.weights.get(place, 1.0), []).append(place)
            groups.append([(np.asarray(places, dtype=int), weight * more) for more, places in by_weight.items()])
        how: dict[str, Any] = {"rivals": extras.rivals, "batch": self.batch}
        if config.order == "mixed":
            return [Stream([group for each in groups for group in each], config.seed, **how)]
        return [Stream(each, config.seed, number, **how) for number, each in enumerate(groups, start=1)]

    def _with_replay(
        self, turns: list[int], stages: list[int], config: FinetuneConfig, extras: Extras
    ) -> tuple[list[int], list[int]]:
        """A batch of replayed samples after every so many steps, which are in the stage around them."""
        if not extras.replay:
            return turns, stages
        stream = len(self._streams)
        self._streams.append(Stream([(np.asarray(extras.replay), 1.0)], config.seed, _REPLAY))
        self._names.append("")
        found: tuple[list[int], list[int]] = ([], [])
        for number, (turn, stage) in enumerate(zip(turns, stages, strict=True), 1):
            found[0].append(turn)
            found[1].append(stage)
            if number % extras.replay_every == 0:
                found[0].append(stream)
                found[1].append(stage)
        return found

    def _with_documents(
        self, turns: list[int], stages: list[int], config: FinetuneConfig, extras: Extras
    ) -> tuple[list[int], list[int]]:
        """A first stage of documents, among general text."""
        if not extras.documents:
            return turns, stages
        stream, share = len(self._streams), extras.document_share if extras.general else 1.0
        general = len(extras.documents) * (1 - share) / share
        members = [(np.asarray(extras.documents), 1.0)]
        if general:
            members.append((np.asarray(extras.general), general / len(extras.general)))
        self._streams.append(Stream(members, config.seed, _DOCUMENTS))
        self._names.append("")
        count = max(1, math.ceil(extras.document_epochs * self._streams[stream].length / self.batch - 1e-9))
        return [stream] * count + turns, [_FIRST] * count + stages

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
        """First step and end of the stage of a step: documents, one task where they follow each other, else all."""
        return self._bounds[self._stages[step]]

    def stage_ends(self) -> frozenset[int]:
        """Steps after which a stage is over."""
        return frozenset(end for _, end in self._bounds.values())

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


_REPLAY, _DOCUMENTS, _FIRST = 1001, 1002, -1
"""Numbers of the streams of a repair plan, and of the stage of documents."""


def _counts_before(turns: Sequence[int], streams: int) -> list[int]:
    """For every step, how many steps before it had the same stream."""
    taken, found = [0] * streams, []
    for turn in turns:
        found.append(taken[turn])
        taken[turn] += 1
    return found
