"""What a set of trees found and cost, and what it had found at any number of tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raylm.records import Tree, from_table
from raylm.search.strategies import majority


@dataclass(slots=True)
class Totals:
    """Counts over trees, gathered while they stream to the merged files."""

    trees: int = 0
    with_trajectory: int = 0
    with_correct: int = 0
    with_wrong: int = 0
    with_both: int = 0
    verdicts: Counter[str] = field(default_factory=lambda: Counter(correct=0, wrong=0, unverifiable=0))
    unfinished: int = 0
    draws: int = 0
    picked_correct: int = 0
    majority_correct: int = 0
    nodes: int = 0
    depth: int = 0
    rounds: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0

    def watch(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Pass tables of trees on and count what is in them."""
        for table in tables:
            for tree in from_table(Tree, table):
                self.add(tree)
            yield table

    def add(self, tree: Tree) -> None:
        """Count one tree."""
        verdicts = [found.verdict for found in tree.trajectories]
        correct, wrong = "correct" in verdicts, "wrong" in verdicts
        self.trees += 1
        self.with_trajectory += bool(verdicts)
        self.with_correct += correct
        self.with_wrong += wrong
        self.with_both += correct and wrong
        self.verdicts.update(verdicts)
        self.unfinished += sum(found.finish_reason == "length" for found in tree.trajectories)
        self.draws += len(tree.draws)
        self.picked_correct += tree.picked >= 0 and verdicts[tree.picked] == "correct"
        self.majority_correct += majority_is_right(tree, len(tree.draws))
        self.nodes += len(tree.nodes)
        self.depth += sum(len(found.node_ids) for found in tree.trajectories)
        self.rounds += tree.rounds
        self.prompt_tokens += tree.prompt_tokens
        self.generated_tokens += tree.generated_tokens

    def figures(self) -> dict[str, Any]:
        """Counts, shares and means, as JSON data."""
        trajectories = sum(self.verdicts.values())
        decided = self.verdicts["correct"] + self.verdicts["wrong"]
        return {
            "trajectories": trajectories,
            **self.verdicts,
            "unfinished": self.unfinished,
            "draws": self.draws,
            "distinct_share": ratio(trajectories, self.draws),
            "with_wrong": self.with_wrong,
            "pass_rate": ratio(self.verdicts["correct"], decided),
            "coverage": ratio(self.with_correct, self.trees),
            "picked_accuracy": ratio(self.picked_correct, self.trees),
            "majority_accuracy": ratio(self.majority_correct, self.trees),
            "mean_depth": ratio(self.depth, trajectories),
            "mean_nodes": ratio(self.nodes, self.trees),
            "mean_rounds": ratio(self.rounds, self.trees),
            "tokens_per_correct": ratio(self.generated_tokens, self.verdicts["correct"]),
        }


@dataclass(frozen=True, slots=True)
class Found:
    """What trees had found by a number of tokens each."""

    tokens: int
    """Budget of every tree."""
    spent: float
    """Mean tokens of a tree within it: searches that stop early leave some."""
    coverage: float
    """Share of trees with a correct response."""
    majority: float
    """Share of trees whose most frequent answer is correct."""
    correct: float
    """Mean distinct correct responses of a tree."""
    both: float
    """Share of trees with a correct and a wrong response."""


_BUDGETS = tuple(16 * 2**power for power in range(17))


class Curve:
    """What searches had found at each of a list of budgets, which is how they are compared at equal tokens."""

    def __init__(self, budgets: Sequence[int] = _BUDGETS) -> None:
        self.budgets = sorted(budgets)
        self.trees = 0
        self.largest = 0
        self._sums = [[0] * 5 for _ in self.budgets]

    def add(self, tree: Tree) -> None:
        """Count one tree."""
        self.trees += 1
        self.largest = max(self.largest, sum(tree.draw_tokens))
        for sums, budget in zip(self._sums, self.budgets, strict=True):
            for place, value in enumerate(_found(tree, draws_within(tree, budget))):
                sums[place] += value

    def points(self) -> list[Found]:
        """One for each budget, up to the first that no tree exceeds."""
        enough = sum(budget < self.largest for budget in self.budgets) + 1
        count = max(self.trees, 1)
        rows = list(zip(self.budgets, self._sums, strict=True))[:enough]
        return [Found(budget, *(value / count for value in sums)) for budget, sums in rows]


def draws_within(tree: Tree, tokens: int) -> int:
    """How many of a tree's draws, in order, cost no more than `tokens` together."""
    spent = 0
    for place, cost in enumerate(tree.draw_tokens):
        spent += cost
        if spent > tokens:
            return place
    return len(tree.draw_tokens)


def majority_is_right(tree: Tree, draws: int) -> bool:
    """Whether the most frequent answer of a tree's first draws is correct."""
    chosen = majority(dict(enumerate(tree.trajectories)), tree.draws[:draws])
    return chosen is not None and tree.trajectories[chosen].verdict == "correct"


def ratio(part: float, whole: float) -> float:
    """part / whole, and 0 of nothing."""
    return part / whole if whole else 0.0


def _found(tree: Tree, draws: int) -> tuple[int, int, int, int, int]:
    """The sums behind `Found` for one tree's first draws."""
    verdicts = [tree.trajectories[found].verdict for found in set(tree.draws[:draws])]
    right = verdicts.count("correct")
    spent = sum(tree.draw_tokens[:draws])
    return spent, int(right > 0), int(majority_is_right(tree, draws)), right, int(right > 0 and "wrong" in verdicts)
