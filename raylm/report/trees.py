"""Search trees for the browser: outcomes of subtrees, pivots, and which trees to show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from raylm.records import Tree

BROWSABLE_TREES, BROWSABLE_NODES = 150, 20_000


def counts(tree: Tree) -> dict[str, int]:
    """Trajectories of a tree by verdict."""
    found = {"correct": 0, "wrong": 0, "unverifiable": 0}
    for path in tree.trajectories:
        found[path.verdict] += 1
    return found


def outcome(verdicts: Iterable[str]) -> str:
    """`mixed`, `correct`, `wrong`, or `none` when nothing was decided."""
    seen = set(verdicts)
    if {"correct", "wrong"} <= seen:
        return "mixed"
    return next((kind for kind in ("correct", "wrong") if kind in seen), "none")


def pivots(tree: Tree) -> set[int]:
    """Nodes that are the last common node of some correct and some wrong trajectory.

    A node is one exactly when a correct path leaves it by one branch and a wrong path by another; a trajectory that
    ends in the node is a branch of its own.
    """
    branches: dict[int, dict[int, set[str]]] = {}
    for number, path in enumerate(tree.trajectories):
        nodes = [0, *path.node_ids]
        for node, child in zip(nodes, [*nodes[1:], -1 - number], strict=True):
            branches.setdefault(node, {}).setdefault(child, set()).add(path.verdict)
    found = set()
    for node, ways in branches.items():
        right = {way for way, verdicts in ways.items() if "correct" in verdicts}
        wrong = {way for way, verdicts in ways.items() if "wrong" in verdicts}
        if right and wrong and len(right | wrong) > 1:
            found.add(node)
    return found


def drawing(tree: Tree) -> dict[str, Any]:
    """What the browser needs of a tree, as JSON data."""
    children: dict[int, list[int]] = {}
    parents = {node.id: node.parent for node in tree.nodes}
    for node in tree.nodes:
        if node.parent >= 0:
            children.setdefault(node.parent, []).append(node.id)
    below: dict[int, set[str]] = {}
    ends: dict[int, list[dict[str, str]]] = {}
    for path in tree.trajectories:
        for step in [0, *path.node_ids]:
            below.setdefault(step, set()).add(path.verdict)
        ends.setdefault(path.node_ids[-1] if path.node_ids else 0, []).append(
            {"verdict": path.verdict, "answer": path.answer}
        )
    turning = pivots(tree)
    above: set[int] = set()
    for node_id in turning:
        while node_id >= 0 and node_id not in above:
            above.add(node_id)
            node_id = parents[node_id]  # noqa: PLW2901
    nodes = {
        node.id: {
            "text": node.text,
            "visits": node.visits,
            "q": round(node.value, 4),
            "round": node.round,
            "tokens": len(node.token_ids),
            "logprob": round(node.logprob, 4),
            "children": children.get(node.id, []),
            "ends": ends.get(node.id, []),
            "outcome": _shade(below.get(node.id, set())),
            "pivot": node.id in turning,
            "abovePivot": node.id in above,
        }
        for node in tree.nodes
    }
    verdicts = counts(tree)
    return {
        "id": tree.id,
        "task": tree.task,
        "question": tree.question,
        "gold": tree.answer,
        "rounds": tree.rounds,
        "tokens": tree.generated_tokens,
        "correct": verdicts["correct"],
        "wrong": verdicts["wrong"],
        "outcome": outcome(path.verdict for path in tree.trajectories),
        "nodes": [nodes[index] for index in range(len(tree.nodes))],
    }


class Showcase:
    """Keeps the trees worth browsing while all of them stream by: those with both kinds of paths first."""

    def __init__(self, trees: int = BROWSABLE_TREES, nodes: int = BROWSABLE_NODES) -> None:
        self.max_trees, self.max_nodes = trees, nodes
        self.seen = 0
        self._kept: dict[str, list[Tree]] = {"mixed": [], "correct": [], "wrong": [], "none": []}

    def offer(self, tree: Tree) -> None:
        """Consider one more tree."""
        self.seen += 1
        kept = self._kept[outcome(path.verdict for path in tree.trajectories)]
        if len(kept) < self.max_trees:
            kept.append(tree)

    def chosen(self) -> list[Tree]:
        """The trees to show, within the limits; the first is always among them."""
        picked: list[Tree] = []
        nodes = 0
        for tree in (tree for group in self._kept.values() for tree in group):
            nodes += len(tree.nodes)
            if picked and (nodes > self.max_nodes or len(picked) >= self.max_trees):
                break
            picked.append(tree)
        return picked

    def caption(self) -> str:
        """Says how many of how many trees are shown."""
        shown = len(self.chosen())
        some = f"{shown} of {self.seen} trees, those with right and wrong paths first." if shown < self.seen else ""
        return (
            f"{some} Colours say where a branch leads; N is visits, Q the mean reward, and a pivot is the last step "
            "that some right and some wrong path share."
        ).strip()


def _shade(verdicts: set[str]) -> str:
    found = outcome(verdicts)
    return "unverifiable" if found == "none" and "unverifiable" in verdicts else found
