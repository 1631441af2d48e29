"""A Monte Carlo search tree over reasoning steps: selection, insertion, backup. Pure data, no engine, no event loop.

Node 0 is the question. Every other node is one step of a response; the path to a node is the prefix that it stands
for. A completion is inserted as a whole, so every inserted path ends in a terminal node, and a terminal node stands for
exactly one finished response. Terminal nodes are never selected: a finished response is not replayed.

Selection has two kinds of arms at a node: "sample here" and each child with something left to explore below it.
Both are scored by UCT or PUCT; progressive widening decides whether "sample here" takes part.

Selection, backup and revision look at a path and at the children on it, never at the whole tree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

_LEAST_PRIOR = 1e-3
"""Probability that a node has steps which were not sampled yet, even when the known ones seem to be all."""

OPEN, STOP, LENGTH = 0, 1, 2
"""How a node's step ended: more may follow, the model ended its response, the response ran out of tokens."""

_COLUMNS: dict[str, type] = {
    "parent": np.int32,
    "depth": np.int32,
    "tokens": np.int32,  # of the path
    "end": np.int8,
    "round": np.int32,
    "visits": np.int64,
    "unscored": np.int64,  # completions through the node whose reward is unknown
    "value_sum": np.float64,
    "best": np.float64,  # highest reward at or below the node, NONE before the first
    "logprob": np.float64,
    "drawn": np.int64,  # completions sampled at the node
    "stale": np.int32,  # the last so many of them repeated known paths
}
NONE = -1.0
"""In place of a reward that is not there; rewards lie in [0, 1]."""
_TRANSIENT: dict[str, type] = {
    "in_flight": np.int64,  # virtual visits
    "drawing": np.int64,  # virtual draws
    "alive_children": np.int32,
    "alive": np.bool_,
}


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of a completion: token ids and the text that they add to the response."""

    token_ids: tuple[int, ...]
    text: str
    logprob: float = 0.0
    """Sum over its tokens, in nats."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What decides where a tree may grow. See `SearchConfig` for the meaning of each."""

    c: float = 1.4
    max_depth: int = 16
    max_tokens: int = 128
    widen: float = 1.0
    widen_power: float = 0.5
    patience: int = 4
    rule: Literal["uct", "puct"] = "uct"
    backup: Literal["mean", "max"] = "mean"


def uct(value: float, count: int, total: int, c: float) -> float:
    """Q + c * sqrt(ln N_parent / N) (source: Kocsis and Szepesvari 2006; CRPS uses it with c 1.4)."""
    return value + c * math.sqrt(math.log(total) / count)


def puct(value: float, prior: float, count: int, total: int, c: float) -> float:
    """Q + c * P * sqrt(N_parent) / (1 + N) (source: Rosin 2011 as AlphaZero writes it)."""
    return value + c * prior * math.sqrt(total) / (1 + count)


class SearchTree:
    """Array-backed tree; nodes are numbered in the order of insertion, so a parent comes before its children."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.size = 0
        self.steps: list[Step] = []
        self.children: list[list[int]] = []
        self._columns: dict[str, np.ndarray] = {
            name: np.zeros(64, dtype) for name, dtype in {**_COLUMNS, **_TRANSIENT}.items()
        }
        self._by_tokens: dict[tuple[int, int, tuple[int, ...]], int] = {}
        self._by_text: dict[tuple[int, int, str], int] = {}
        self._add(-1, Step((), ""), OPEN, -1)

    def __len__(self) -> int:
        return self.size

    def column(self, name: str) -> np.ndarray:
        """One value a node, a view of shape (nodes,)."""
        return self._columns[name][: self.size]

    def value(self, node: int) -> float:
        """Q: the mean backed-up reward, or with backup `max` the highest one; 0.0 before the first."""
        visits = self._columns["visits"][node]
        if not visits:
            return 0.0
        if self.limits.backup == "max":
            return float(self._columns["best"][node])
        return float(self._columns["value_sum"][node] / visits)

    def path(self, node: int) -> list[int]:
        """Node ids from below the root down to `node`; empty for the root."""
        ids = []
        while node > 0:
            ids.append(node)
            node = int(self._columns["parent"][node])
        return ids[::-1]

    def token_ids(self, node: int) -> list[int]:
        """Token ids of the response up to and with `node`."""
        return [token for step in self.path(node) for token in self.steps[step].token_ids]

    def text(self, node: int) -> str:
        """Text of the response up to and with `node`."""
        return "".join(self.steps[step].text for step in self.path(node))

    def exhausted(self) -> bool:
        """Whether nothing is left to explore."""
        return not self._columns["alive"][0]

    def samplable(self, node: int) -> bool:
        """Whether a node is open and within the bounds of depth, length and patience."""
        columns, limits = self._columns, self.limits
        return bool(
            columns["end"][node] == OPEN
            and columns["depth"][node] < limits.max_depth
            and columns["tokens"][node] < limits.max_tokens
            and columns["stale"][node] < limits.patience
        )

    def select(self, weight: int = 1) -> int:
        """Choose a node to sample from and mark `weight` virtual visits on its path until `release`.

        An arm that was never tried comes first; ties go to the smaller node id, a node's own arm before its children.

        Raises:
            ValueError: the tree is exhausted.
        """
        if self.exhausted():
            raise ValueError("nothing is left to explore in this tree")
        node = 0
        while (arm := self._best_arm(node)) != node:
            node = arm
        self.mark(node, weight)
        return node

    def mark(self, node: int, weight: int = 1) -> None:
        """Put `weight` virtual visits on the path to a node that is about to be sampled from, until `release`."""
        self._columns["drawing"][node] += weight
        for step in (0, *self.path(node)):
            self._columns["in_flight"][step] += weight

    def release(self, node: int, weight: int = 1) -> None:
        """Take back the virtual visits of `select` or `mark`."""
        self.mark(node, -weight)

    def insert(self, leaf: int, steps: Sequence[Step], end: int, round_index: int) -> tuple[int, bool]:
        """Add a completion of `leaf`, merging steps that are there already.

        Two steps under one parent are equal when their token ids are, or their texts up to white space.

        Args:
            leaf: the node that it was sampled from.
            steps: its steps; empty when the response ended at once.
            end: STOP or LENGTH.
            round_index: stored with new nodes.

        Returns:
            the terminal node, and whether the finished response is new to the tree.
        """
        if end not in (STOP, LENGTH):
            raise ValueError(f"end must be STOP or LENGTH, got {end}")
        node, before = leaf, self.size
        for step in steps[:-1]:
            node = self._find(node, step, OPEN) or self._add(node, step, OPEN, round_index)
        terminal = self._find_end(node, steps[-1] if steps else None, end)
        if terminal is None:
            terminal = self._add(node, steps[-1] if steps else Step((), ""), end, round_index)
        new = terminal >= before
        drawn, stale = self._columns["drawn"], self._columns["stale"]
        drawn[leaf] += 1
        stale[leaf] = 0 if new else stale[leaf] + 1
        self._refresh(leaf)
        return terminal, new

    def backup(self, terminal: int, reward: float | None) -> None:
        """Credit one completion to the root and every step of its path; `reward` None counts without a value."""
        columns = self._columns
        for node in (0, *self.path(terminal)):
            if reward is None:
                columns["unscored"][node] += 1
            else:
                columns["visits"][node] += 1
                columns["value_sum"][node] += reward
                columns["best"][node] = max(columns["best"][node], reward)

    def revise(self, terminal: int, reward: float) -> None:
        """Change the reward of a terminal node, for all completions that ended there and were backed up with one."""
        columns = self._columns
        count = columns["visits"][terminal]
        if not count or reward == columns["best"][terminal]:
            return
        change = (reward - columns["best"][terminal]) * count
        columns["best"][terminal] = reward
        columns["value_sum"][terminal] = reward * count
        for node in (*self.path(terminal)[-2::-1], 0):
            columns["value_sum"][node] += change
            columns["best"][node] = max(columns["best"][child] for child in self.children[node])

    def state(self) -> dict[str, Any]:
        """Everything but virtual visits as JSON data, exactly; who has samples in flight marks them again."""
        columns: dict[str, Any] = {name: self.column(name).tolist() for name in _COLUMNS}
        return {
            **columns,
            "token_ids": [list(step.token_ids) for step in self.steps],
            "text": [step.text for step in self.steps],
        }

    @classmethod
    def from_state(cls, limits: Limits, state: dict[str, Any]) -> SearchTree:
        """The tree whose `state()` this is."""
        tree = cls(limits)
        rows = zip(state["parent"], state["token_ids"], state["text"], state["logprob"], state["end"], strict=True)
        for index, (parent, token_ids, text, logprob, end) in enumerate(rows):
            if index:
                tree._add(parent, Step(tuple(token_ids), text, logprob), end, state["round"][index])
        for name in _COLUMNS:
            tree.column(name)[:] = state[name]
        for node in range(tree.size - 1, -1, -1):
            tree._refresh(node)
        return tree

    def _best_arm(self, node: int) -> int:
        """The child to descend to, or `node` itself to sample there."""
        columns = self._columns
        open_children = [child for child in self.children[node] if columns["alive"][child]]
        total = self._count(node)
        limits = self.limits
        room = len(self.children[node]) < limits.widen * float(total + 1) ** limits.widen_power
        arms: list[tuple[int, int]] = [(child, self._count(child)) for child in open_children]
        if self.samplable(node) and (room or not open_children):
            arms.insert(0, (node, int(columns["drawn"][node] + columns["drawing"][node])))
        if limits.rule == "uct":
            untried = next((arm for arm, count in arms if count == 0), None)
            if untried is not None:
                return untried
        priors = self._priors(node, arms) if limits.rule == "puct" else [0.0] * len(arms)

        def score(place: int) -> tuple[float, int]:
            arm, count = arms[place]
            value = self._cautious_value(arm)
            if limits.rule == "puct":
                return puct(value, priors[place], count, total, limits.c), -arm
            return uct(value, count, max(total, 1), limits.c), -arm

        return arms[max(range(len(arms)), key=score)][0]

    def _priors(self, node: int, arms: Sequence[tuple[int, int]]) -> list[float]:
        """The policy's own probability of each arm; sampling at the node has what its known steps leave over.

        Normalised over the arms (source: ours; AlphaZero's arms are given, ours are what was sampled so far).
        """
        logprob = self._columns["logprob"]
        left = max(1.0 - sum(math.exp(min(logprob[child], 0.0)) for child in self.children[node]), _LEAST_PRIOR)
        weights = [left if arm == node else math.exp(min(logprob[arm], 0.0)) for arm, _ in arms]
        total = sum(weights)
        return [weight / total if total else 1.0 / len(arms) for weight in weights]

    def _count(self, node: int) -> int:
        columns = self._columns
        return int(columns["visits"][node] + columns["unscored"][node] + columns["in_flight"][node])

    def _cautious_value(self, node: int) -> float:
        """Q with the samples in flight counted as failures (virtual loss)."""
        visits = self._columns["visits"][node]
        scored = visits + self._columns["in_flight"][node]
        return self.value(node) * float(visits / scored) if visits else 0.0

    def _refresh(self, node: int) -> None:
        """Bring `alive` (something at or below the node may be sampled) up to date, from `node` upwards."""
        columns = self._columns
        while node >= 0:
            alive = self.samplable(node) or columns["alive_children"][node] > 0
            if alive == columns["alive"][node]:
                return
            columns["alive"][node] = alive
            node = int(columns["parent"][node])
            if node >= 0:
                columns["alive_children"][node] += 1 if alive else -1

    def _find(self, parent: int, step: Step, end: int) -> int | None:
        found = self._by_tokens.get((parent, end, step.token_ids))
        if found is None and (text := _normalised(step.text)):
            found = self._by_text.get((parent, end, text))
        return found

    def _find_end(self, node: int, last: Step | None, end: int) -> int | None:
        """The terminal node of an equal response, however the model came to its end.

        A step that another completion went on from can itself be the end: reached in one go it is a terminal
        twin beside the open node, and when the open node was sampled from and ended at once, an empty child of it.
        """
        if last is not None:
            found = self._find(node, last, end)
            twin = self._find(node, last, OPEN)
            return found if found is not None or twin is None else self._find(twin, Step((), ""), end)
        found = self._find(node, Step((), ""), end)
        if found is None and node > 0:
            found = self._find(int(self._columns["parent"][node]), self.steps[node], end)
        return found

    def _add(self, parent: int, step: Step, end: int, round_index: int) -> int:
        node = self.size
        if node == len(self._columns["parent"]):
            self._columns = {name: np.concatenate([old, np.zeros_like(old)]) for name, old in self._columns.items()}
        self.size += 1
        columns = self._columns
        columns["parent"][node], columns["end"][node], columns["round"][node] = parent, end, round_index
        columns["logprob"][node], columns["best"][node] = step.logprob, NONE
        if parent >= 0:
            columns["depth"][node] = columns["depth"][parent] + 1
            columns["tokens"][node] = columns["tokens"][parent] + len(step.token_ids)
            self.children[parent].append(node)
        self.steps.append(step)
        self.children.append([])
        self._by_tokens.setdefault((parent, end, step.token_ids), node)
        if text := _normalised(step.text):
            self._by_text.setdefault((parent, end, text), node)
        self._refresh(node)
        return node


def _normalised(text: str) -> str:
    return " ".join(text.split())
