"""A search tree on the terminal: values, visits, verdicts, and the path that won."""

from __future__ import annotations

import difflib
from collections import Counter

from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text
from rich.tree import Tree as RichTree

from raylm.errors import UserError
from raylm.records import Node, Trajectory, Tree, from_table
from raylm.storage import Store

_COLOURS = {"correct": "green", "wrong": "red", "unverifiable": "yellow"}
_MARKS = {"correct": "✓", "wrong": "✗", "unverifiable": "?"}


def show(path: str, id: str) -> None:
    """Print the tree of an explore artefact with this tree or problem id.

    Raises:
        UserError: no finished artefact of explore is at `path`, or it has no such tree; near ids are listed.
    """
    Console(highlight=False).print(render_tree(find(path, id)))


def find(path: str, id: str) -> Tree:
    """The tree of an explore artefact with this tree or problem id; see `show` for errors."""
    store = Store(path)
    manifest = store.manifest()
    if manifest is None:
        raise UserError(f"{path}: no finished artefact here (manifest.json is missing); run explore first")
    if manifest.stage != "explore":
        raise UserError(f"{path}: this is the artefact of {manifest.stage}; trees are in that of explore")
    known: list[str] = []
    for name in store.names("data"):
        table = store.read_table(f"data/{name}")
        trees, problems = table.column("id").to_pylist(), table.column("problem_id").to_pylist()
        for row, names in enumerate(zip(trees, problems, strict=True)):
            if id in names:
                return from_table(Tree, table.slice(row, 1))[0]
        known += [*problems, *trees]
    near = difflib.get_close_matches(id, known, n=5, cutoff=0.4) or known[:5]
    raise UserError(f"{path}: no tree or problem {id!r}; near ids: {', '.join(near) or 'none, there are no trees'}")


def winner(tree: Tree) -> Trajectory | None:
    """The correct trajectory with the fewest steps, ties by the highest value on its path; None without one.

    Source: released code of CRPS, which takes it as the anchor.
    """
    correct = [found for found in tree.trajectories if found.verdict == "correct"]
    best_value = {id(found): max(tree.nodes[node].value for node in found.node_ids) for found in correct}
    return min(correct, key=lambda found: (len(found.node_ids), -best_value[id(found)]), default=None)


def render_tree(tree: Tree) -> Group:
    """The question, a line of counts, and every node with its value Q, visits N and the verdict of what ends there."""
    ends = {found.node_ids[-1]: found for found in tree.trajectories}
    won = winner(tree)
    winning = set(won.node_ids) if won else set()
    root = RichTree(_label(tree.nodes[0], None, False), guide_style="dim")
    branches = {0: root}
    for node in tree.nodes[1:]:
        label = _label(node, ends.get(node.id), node.id in winning)
        branches[node.id] = branches[node.parent].add(label, guide_style="bold green" if node.id in winning else "dim")
    return Group(*_header(tree), root, *_footer(won))


def _header(tree: Tree) -> list[Text | Padding]:
    counts = Counter(found.verdict for found in tree.trajectories)
    verdicts = ", ".join(f"{counts[name]} {name}" for name in _COLOURS if counts[name]) or "no trajectories"
    unfinished = sum(found.finish_reason == "length" for found in tree.trajectories)
    facts = (
        f"tree {tree.id}  problem {tree.problem_id}  task {tree.task}\n"
        f"{tree.model} @ {tree.revision}  seed {tree.seed}\n"
        f"{tree.strategy}: {tree.rounds} expansions, {len(tree.nodes)} nodes, "
        f"{tree.generated_tokens:,} generated tokens; {verdicts}"
        f"{f' ({unfinished} ran out of tokens)' if unfinished else ''}"
    )
    question = Text.assemble(tree.question.strip(), ("\ngold: ", "dim"), tree.answer)
    return [Text(facts, style="dim"), Padding(question, (1, 0, 1, 2))]


def _label(node: Node, end: Trajectory | None, won: bool) -> str:
    text = "the question" if node.parent < 0 else escape(" ".join(node.text.split())) or "(ends here)"
    shown = f"[bold]{text}[/bold]" if won else text
    label = f"[cyan]{node.id}[/cyan] {shown}  [dim]Q {node.value:.2f} N {node.visits}[/dim]"
    if end is None:
        return label
    answer = "ran out of tokens" if end.finish_reason == "length" else escape(end.answer) or "no answer"
    return f"{label}  [{_COLOURS[end.verdict]}]{_MARKS[end.verdict]} {end.verdict}: {answer}[/]"


def _footer(won: Trajectory | None) -> list[Text | Padding]:
    if won is None:
        return [Text("\nno path won: none is correct", style="yellow")]
    steps = len(won.node_ids)
    title = f"\nthe path that won ({steps} step{'s' * (steps != 1)}, {won.tokens} tokens, log-prob {won.logprob:.1f}):"
    return [Text(title, style="green"), Padding(Text(won.text), (0, 0, 0, 2))]
