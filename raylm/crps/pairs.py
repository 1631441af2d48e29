"""Which trajectories of a tree are contrasted. Pure functions of the tree, the config and the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raylm.crps.config import PairConfig
from raylm.records import Trajectory, Tree

Contrast = Literal["hard", "soft"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A good path and one that is worse."""

    anchor: Trajectory
    negative: Trajectory
    contrast: Contrast
    """hard: the negative is wrong; soft: it is right and longer."""
    shared: int
    """Steps that both paths begin with."""

    @property
    def pivot_node(self) -> int:
        """The last node on both paths; 0, the question, when they part at once."""
        return self.anchor.node_ids[self.shared - 1] if self.shared else 0


def correct(tree: Tree) -> list[Trajectory]:
    """Finished paths with a correct answer, in the tree's order."""
    return [item for item in tree.trajectories if item.verdict == "correct" and item.finish_reason == "stop"]


def wrong(tree: Tree) -> list[Trajectory]:
    """Finished paths with a wrong answer; a path that ran out of tokens shows no failure to learn from."""
    return [item for item in tree.trajectories if item.verdict == "wrong" and item.finish_reason == "stop"]


def rank(tree: Tree, paths: Sequence[Trajectory]) -> list[Trajectory]:
    """Best first: fewest steps, then the highest value on the path (source: released code), then the text."""
    values = {node.id: node.value for node in tree.nodes}
    return sorted(paths, key=lambda item: (len(item.node_ids), -max(map(values.__getitem__, item.node_ids)), item.text))


def shared_steps(first: Trajectory, second: Trajectory) -> int:
    """How many steps two paths begin with in common."""
    count = 0
    for left, right in zip(first.node_ids, second.node_ids, strict=False):
        if left != right:
            break
        count += 1
    return count


def select(tree: Tree, config: PairConfig, seed: int) -> list[Pair]:
    """At most `max_pairs` pairs, hard ones up to their share first; empty without a correct path or any negative."""
    good = rank(tree, correct(tree))
    if not good:
        return []
    hard_limit = max(1, round(config.max_pairs * config.hard_ratio))
    hard = _hard(tree, good, wrong(tree), config, seed)[:hard_limit]
    anchor = good[0]
    soft = [
        Pair(anchor, item, "soft", shared_steps(anchor, item))
        for item in good
        if len(item.node_ids) > len(anchor.node_ids)
    ]
    return [*hard, *soft[: config.max_pairs - len(hard)]]


def _hard(
    tree: Tree, good: Sequence[Trajectory], bad: Sequence[Trajectory], config: PairConfig, seed: int
) -> list[Pair]:
    if config.choose == "longest_prefix":
        # Each wrong path beside the right one it follows longest: where they part is the true pivot (source: ours).
        beside = [[Pair(item, path, "hard", shared_steps(item, path)) for item in good] for path in bad]
        closest = [max(choices, key=lambda pair: pair.shared) for choices in beside]
        return sorted(closest, key=lambda pair: -pair.shared)
    visits = {node.id: node.visits for node in tree.nodes}
    weights = np.array([visits[path.node_ids[-1]] for path in bad], dtype=float)
    if not weights.sum():
        weights = np.ones(len(bad))
    order = _generator(seed, tree.problem_id).choice(
        len(bad), size=int(np.count_nonzero(weights)), replace=False, p=weights / weights.sum()
    )
    return [Pair(good[0], bad[index], "hard", shared_steps(good[0], bad[index])) for index in order]


def _generator(seed: int, problem_id: str) -> np.random.Generator:
    digest = hashlib.sha256(f"pairs/{seed}/{problem_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
