"""Which paths of a tree are contrasted. Pure functions of the tree, the config and the seed.

What leaves this module for an analyst or a synthesiser is a `Pair`, which holds no gold answer: nothing that writes
training text could read one.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from raylm.crps.config import PairConfig
from raylm.records import Tree

Contrast = Literal["hard", "soft", "none"]
Rank = Callable[["Path"], tuple[Any, ...]]
"""Sort key of correct paths, the best first."""


@dataclass(frozen=True, slots=True)
class Path:
    """One finished path of a tree."""

    nodes: tuple[int, ...]
    """Ids of its nodes, the question left out."""
    steps: tuple[str, ...]
    """Texts of its nodes; the last is empty when the model ended its response behind a step that others go on from."""
    values: tuple[float, ...]
    """Mean reward at the question and then at each step: one more than there are steps."""
    visits: int
    """Visits of its last node."""

    @property
    def text(self) -> str:
        """The response."""
        return "".join(self.steps)

    @property
    def length(self) -> int:
        """Steps that say something."""
        return sum(bool(step.strip()) for step in self.steps)


@dataclass(frozen=True, slots=True)
class Rescue:
    """The deepest place at which a wrong path could still have been saved."""

    step: int
    """Index of the step that should have been another."""
    node: int
    """The sibling that leads to a right answer."""
    text: str
    """What the sibling says."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A good path and one that is worse: all that is known of a problem where training text is written."""

    question: str
    anchor: Path
    negative: Path
    contrast: Contrast
    """hard: the negative is wrong; soft: it is right and longer; none: there is none, and it is the anchor itself."""
    rescue: Rescue | None = None
    """None for a soft pair."""

    @property
    def shared(self) -> int:
        """Steps that both paths begin with; 0 without a negative."""
        return shared_steps(self.anchor, self.negative) if self.contrast != "none" else 0

    @property
    def pivot_node(self) -> int:
        """The last node on both paths; 0, the question, when they part at once."""
        return self.anchor.nodes[self.shared - 1] if self.shared else 0


def lone(tree: Tree, path: Path) -> Pair:
    """A good path with nothing to contrast it with, in the form of a pair."""
    return Pair(tree.question, path, path, "none")


def paths(tree: Tree, verdict: str) -> list[Path]:
    """Finished paths with this verdict, in the order they were found; one that ran out of tokens is not finished."""
    nodes = {node.id: node for node in tree.nodes}
    return [
        Path(
            nodes=tuple(found.node_ids),
            steps=tuple(nodes[node].text for node in found.node_ids),
            values=tuple(nodes[node].value for node in (0, *found.node_ids)),
            visits=nodes[found.node_ids[-1]].visits,
        )
        for found in tree.trajectories
        if found.verdict == verdict and found.finish_reason == "stop" and found.node_ids
    ]


def fewest_steps(path: Path) -> tuple[Any, ...]:
    """Fewest steps, then the highest value on the path (source: released code), then ids."""
    return (path.length, -max(path.values[1:]), path.nodes)


def best_value(path: Path) -> tuple[Any, ...]:
    """The highest mean value of the steps, then fewest steps, then ids."""
    return (-sum(path.values[1:]) / len(path.values[1:]), path.length, path.nodes)


def correct_paths(
    tree: Tree, unfit: Callable[[Path], bool] = lambda path: False, rank: Rank = fewest_steps
) -> list[Path]:
    """Correct paths, best first.

    Those that are `unfit` to be trained on, such as a right answer behind wrong sums, are left out unless all are.
    """
    ranked = sorted(paths(tree, "correct"), key=rank)
    return [path for path in ranked if not unfit(path)] or ranked


def shared_steps(first: Path, second: Path) -> int:
    """How many steps two paths begin with in common."""
    count = 0
    for left, right in zip(first.nodes, second.nodes, strict=False):
        if left != right:
            break
        count += 1
    return count


def select(
    tree: Tree,
    config: PairConfig,
    seed: int,
    unfit: Callable[[Path], bool] = lambda path: False,
    rank: Rank = fewest_steps,
) -> list[Pair]:
    """Hard pairs up to their share of `max_pairs`, then soft ones up to theirs; a share that is not filled stays so.

    Empty without a correct path, or with nothing to contrast it with. Anchors are `correct_paths`, and the first of
    them alone where forms decide: a worse form is what the contrast is to teach away from.
    """
    good, bad = correct_paths(tree, unfit, rank), paths(tree, "wrong")
    if not good:
        return []
    hard_limit = round(config.max_pairs * config.hard_ratio)
    anchors = good[:1] if config.anchor == "best_form" else good
    chosen = _choose(anchors, bad, config.choose, hard_limit, _generator(seed, tree.problem_id))
    hard = [Pair(tree.question, anchor, path, "hard", _rescue(path, good)) for anchor, path in chosen]
    soft = [Pair(tree.question, good[0], path, "soft") for path in good if path.length > good[0].length]
    return [*hard[:hard_limit], *soft[: config.max_pairs - hard_limit]]


def _choose(
    good: Sequence[Path], bad: Sequence[Path], how: str, limit: int, random: np.random.Generator
) -> list[tuple[Path, Path]]:
    """(good, wrong) paths in the order of preference."""
    if how == "longest_prefix":
        return _by_prefix(good, bad)
    if how == "random":
        every = [(anchor, path) for anchor in good for path in bad]
        return [every[place] for place in random.permutation(len(every))[:limit]]
    weights = np.array([path.visits for path in bad], dtype=float)
    if not weights.any():
        weights = np.ones(len(bad))
    size = min(limit, int(np.count_nonzero(weights)))
    if not size:
        return []
    drawn = random.choice(len(bad), size=size, replace=False, p=weights / weights.sum())
    return [(good[0], bad[place]) for place in drawn]


def _by_prefix(good: Sequence[Path], bad: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Each wrong path beside the right one that it follows longest: where they part is the true pivot.

    One of every pivot comes before a second one of any, so that few pairs still teach many decisions (source: ours).
    """
    closest = [(max(good, key=lambda anchor: shared_steps(anchor, path)), path) for path in bad]
    closest.sort(key=lambda both: (-shared_steps(*both), both[1].nodes))
    seen: collections.Counter[tuple[int, ...]] = collections.Counter()
    turns = []
    for anchor, path in closest:
        decision = anchor.nodes[: shared_steps(anchor, path) + 1]
        turns.append((seen[decision], (anchor, path)))
        seen[decision] += 1
    return [both for _, both in sorted(turns, key=lambda item: item[0])]


def _rescue(path: Path, good: Sequence[Path]) -> Rescue | None:
    closest = max(good, key=lambda anchor: shared_steps(anchor, path))
    step = shared_steps(closest, path)
    if step >= len(closest.nodes):
        return None
    return Rescue(step, closest.nodes[step], closest.steps[step])


def _generator(seed: int, problem_id: str) -> np.random.Generator:
    digest = hashlib.sha256(f"pairs/{seed}/{problem_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
