"""What a set of trees found and cost, and what it had found at any number of tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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


def curve(trees: Sequence[Tree], budgets: Iterable[int] = ()) -> list[Found]:
    """What a search had found at each budget; without budgets at the powers of two up to the largest tree."""
    largest = max((sum(tree.draw_tokens) for tree in trees), default=0)
    points = sorted(budgets) or [2**power for power in range(4, math.ceil(math.log2(max(largest, 16))) + 1)]
    return [_found(trees, budget) for budget in points]


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


def _found(trees: Sequence[Tree], budget: int) -> Found:
    spent = coverage = votes = correct = both = 0
    for tree in trees:
        draws = draws_within(tree, budget)
        verdicts = [tree.trajectories[found].verdict for found in set(tree.draws[:draws])]
        spent += sum(tree.draw_tokens[:draws])
        coverage += "correct" in verdicts
        votes += majority_is_right(tree, draws)
        correct += verdicts.count("correct")
        both += "correct" in verdicts and "wrong" in verdicts
    count = max(len(trees), 1)
    return Found(budget, spent / count, coverage / count, votes / count, correct / count, both / count)
