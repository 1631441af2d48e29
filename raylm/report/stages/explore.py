"""Report of an explore artefact: how often the search succeeds, what trees look like, and the trees themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from statistics import median

from markupsafe import Markup

from raylm.evaluation.stats import wilson
from raylm.records import Tree
from raylm.report import figures
from raylm.report.artefacts import finished, iterate, made_from, subtitle, timing
from raylm.report.page import Page, figure, format_interval
from raylm.report.trees import Showcase, drawing, outcome
from raylm.search.totals import Curve
from raylm.storage import Store

_OUTCOMES = {
    "mixed": "right and wrong paths",
    "correct": "right paths only",
    "wrong": "wrong paths only",
    "none": "no verdict",
}


_COLOURS = {"mixed": figures.BLUE, "correct": figures.GREEN, "wrong": figures.ORANGE, "none": figures.GREY}


@dataclass(slots=True)
class _Task:
    """Totals of one task."""

    outcomes: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    unfinished: int = 0
    nodes: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def trees(self) -> int:
        return sum(self.outcomes.values())

    @property
    def solved(self) -> int:
        return self.outcomes["mixed"] + self.outcomes["correct"]


@dataclass(slots=True)
class Overview:
    """Everything that the report shows of a set of trees, gathered in one pass."""

    tasks: dict[str, _Task] = field(default_factory=lambda: defaultdict(_Task))
    showcase: Showcase = field(default_factory=Showcase)
    nodes: dict[str, list[int]] = field(default_factory=lambda: {kind: [] for kind in _OUTCOMES})
    tokens: dict[str, list[int]] = field(default_factory=lambda: {kind: [] for kind in _OUTCOMES})
    correct: dict[str, list[int]] = field(default_factory=lambda: {kind: [] for kind in _OUTCOMES})
    value_by_depth: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    visits_by_depth: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    curve: Curve = field(default_factory=Curve)

    def add(self, tree: Tree) -> None:
        """Count one tree."""
        kind = outcome(path.verdict for path in tree.trajectories)
        task = self.tasks[tree.task]
        task.outcomes[kind] += 1
        task.verdicts.update(path.verdict for path in tree.trajectories)
        task.unfinished += sum(path.finish_reason == "length" for path in tree.trajectories)
        task.nodes.append(len(tree.nodes))
        task.tokens.append(tree.generated_tokens)
        self.nodes[kind].append(len(tree.nodes))
        self.tokens[kind].append(tree.generated_tokens)
        self.correct[kind].append(sum(path.verdict == "correct" for path in tree.trajectories))
        self.showcase.offer(tree)
        self.curve.add(tree)
        depths: dict[int, int] = {}
        for node in tree.nodes:  # parents come before their children
            depth = depths[node.id] = depths[node.parent] + 1 if node.parent >= 0 else 0
            if node.visits:
                self.value_by_depth[depth].append(node.value)
                self.visits_by_depth[depth].append(node.visits)

    def total(self) -> _Task:
        """Totals over all tasks."""
        total = _Task()
        for task in self.tasks.values():
            total.outcomes.update(task.outcomes)
            total.verdicts.update(task.verdicts)
            total.unfinished += task.unfinished
            total.nodes += task.nodes
            total.tokens += task.tokens
        return total


def build(store: Store, related: dict[str, Store]) -> Page:
    """The page of a finished explore artefact."""
    manifest = finished(store)
    overview = gather(store)
    total = overview.total()
    page = Page("Explore: search trees", subtitle(store, manifest))
    page.section("Overview")
    page.tiles(_tiles(store, total))
    if manifest.funnel:
        page.funnel(manifest.funnel)
    if total.trees and not total.solved:
        page.callout("No tree holds a correct path: synthesis will have nothing to write from.", "warn")
    page.section("By task", "A tree counts as solved when at least one of its finished paths was verified as correct.")
    _task_table(page, overview.tasks)
    page.section("Shape of the search")
    page.grid(_plots(overview))
    add_browser(page, overview.showcase)
    page.section("Made from")
    page.table(("what", "value"), made_from(manifest))
    return page


def gather(store: Store) -> Overview:
    """One pass over all trees of an artefact."""
    overview = Overview()
    for tree in iterate(store, Tree):
        overview.add(tree)
    return overview


def add_browser(page: Page, showcase: Showcase) -> None:
    """A section in which trees can be opened step by step."""
    page.section("Trees", showcase.caption())
    chosen = showcase.chosen()
    if chosen:
        page.trees([drawing(tree) for tree in chosen])
    else:
        page.callout("There are no trees.", "warn")


def _tiles(store: Store, total: _Task) -> list[tuple[str, str, str]]:
    if not total.trees:
        return [("trees", "0", "")]
    low, high = wilson(total.solved, total.trees)
    tokens, correct = sum(total.tokens), total.verdicts["correct"]
    seconds = timing(store).get("seconds")
    return [
        ("trees", f"{total.trees:,}", f"median {median(total.nodes):.0f} nodes"),
        ("solved", f"{total.solved / total.trees:.0%}", f"95% interval {low:.0%} to {high:.0%}"),
        ("with right and wrong paths", f"{total.outcomes['mixed'] / total.trees:.0%}", "what contrast is made from"),
        ("generated tokens", f"{tokens:,}", f"median {median(total.tokens):.0f} a tree"),
        ("tokens a correct path", f"{tokens / correct:,.0f}" if correct else "none", f"{correct:,} correct paths"),
        ("tokens a second", f"{tokens / seconds:,.0f}" if seconds else "unknown", "wall clock"),
    ]


def _task_table(page: Page, tasks: dict[str, _Task]) -> None:
    header = (
        "task",
        "trees",
        "solved",
        "95% interval",
        "right and wrong",
        "paths",
        "correct",
        "unverifiable",
        "unfinished",
        "nodes a tree",
        "tokens a tree",
    )
    rows = []
    for name, task in tasks.items():
        paths = sum(task.verdicts.values())
        interval = (task.solved / task.trees, *wilson(task.solved, task.trees))
        rows.append(
            (
                name,
                task.trees,
                f"{interval[0]:.0%}",
                format_interval(interval).split(" ", 1)[1],
                f"{task.outcomes['mixed'] / task.trees:.0%}",
                f"{paths:,}",
                f"{task.verdicts['correct'] / paths:.0%}" if paths else "",
                task.verdicts["unverifiable"],
                task.unfinished,
                f"{sum(task.nodes) / task.trees:.1f}",
                f"{sum(task.tokens) / task.trees:.0f}",
            )
        )
    page.table(header, rows)


def _plots(overview: Overview) -> list[Markup]:
    present = [kind for kind in _OUTCOMES if overview.nodes[kind]]
    depths = sorted(overview.value_by_depth)
    value = [sum(overview.value_by_depth[d]) / len(overview.value_by_depth[d]) for d in depths]
    visits = [sum(overview.visits_by_depth[d]) / len(overview.visits_by_depth[d]) for d in depths]
    values = [value for depth in depths[1:] for value in overview.value_by_depth[depth]]
    colours = [_COLOURS[kind] for kind in present]
    points = overview.curve.points()
    tokens = [point.tokens for point in points]
    return [
        figure(
            figures.lines(
                {
                    "a correct response": (tokens, [point.coverage for point in points]),
                    "right and wrong responses": (tokens, [point.both for point in points]),
                    "a correct majority": (tokens, [point.majority for point in points]),
                },
                title="Found by tokens",
                x="generated tokens of a tree, at most",
                y="share of trees",
                limits=(-0.02, 1.02),
                log_x=True,
            ),
            "What the trees had found once each had spent so many tokens; a tree that stopped keeps what it has.",
        ),
        figure(
            figures.histogram(
                {_OUTCOMES[kind]: overview.nodes[kind] for kind in present},
                title="Nodes of a tree",
                x="nodes",
                y="trees",
                colours=colours,
            )
        ),
        figure(
            figures.histogram(
                {_OUTCOMES[kind]: overview.tokens[kind] for kind in present},
                title="Generated tokens of a tree",
                x="tokens",
                y="trees",
                colours=colours,
            )
        ),
        figure(
            figures.histogram(
                {_OUTCOMES[kind]: overview.correct[kind] for kind in present},
                title="Correct paths of a tree",
                x="correct paths",
                y="trees",
                colours=colours,
            )
        ),
        figure(
            figures.histogram({"nodes": values}, title="Value of visited nodes", x="mean reward Q", y="nodes"),
            "The question itself is left out.",
        ),
        figure(
            figures.lines(
                {"mean value Q": (depths, value)},
                title="Value by depth",
                x="depth (steps)",
                y="mean reward Q",
                limits=(-0.02, 1.02),
            )
        ),
        figure(
            figures.lines(
                {"mean visits": (depths, visits)}, title="Visits by depth", x="depth (steps)", y="visits of a node"
            )
        ),
    ]
