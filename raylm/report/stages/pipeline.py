"""The one page that tells a pipeline's story: what was gained, from what, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from raylm.progress import format_seconds
from raylm.records import Judgement, Tree
from raylm.report.artefacts import finished, iterate, made_from, subtitle
from raylm.report.facts import Facts, collect
from raylm.report.page import Page, format_p, label
from raylm.report.stages import finetune
from raylm.report.stages.evaluate import add_changes
from raylm.report.stages.explore import add_browser
from raylm.report.trees import Showcase
from raylm.storage import Store

_SHOWN = 6
"""Changed questions of each kind on the page; the evaluation's own report has more."""


def build(store: Store, related: Mapping[str, Store]) -> Page:
    """The page of a finished pipeline.

    Args:
        store: the pipeline's directory.
        related: artefact of every stage by name; empty takes the sub-directories that its manifest names.
    """
    manifest = finished(store)
    stages = dict(related) or {name: store.child(name) for name in manifest.figures["stages"]}
    facts = collect(stages)
    page = Page("Pipeline: search, synthesis, fine-tuning", subtitle(store, manifest))
    _add_headline(page, facts)
    page.section("From problems to chains", "Every count is a part of the one above it where the units agree.")
    page.funnel(facts.funnel)
    if "finetune" in stages:
        finetune.add_training(page, stages["finetune"])
    _add_costs(page, facts, store)
    if "evaluate_after" in stages and "evaluate_before" in stages:
        rows = [row for row in iterate(stages["evaluate_after"], Judgement) if row.sample == 0]
        add_changes(page, rows, stages["evaluate_before"], _SHOWN)
    if "explore" in stages:
        showcase = Showcase()
        for tree in iterate(stages["explore"], Tree):
            showcase.offer(tree)
        add_browser(page, showcase)
    page.section("Made from")
    page.table(("what", "value"), made_from(manifest))
    return page


def _add_headline(page: Page, facts: Facts) -> None:
    page.section(
        "Before and after",
        "Share of questions whose greedy response was verified as correct, with 95% intervals. Differences are paired "
        "by question (bootstrap interval, exact McNemar test).",
    )
    if not facts.gains:
        page.callout("There is no evaluation before and after to compare.", "warn")
        return
    page.tiles(
        [
            (
                label(gain.suite),
                f"{gain.before[0]:.1%} → {gain.after[0]:.1%}",
                f"{format_p(gain.p_value)}, {gain.fixed} fixed, {gain.broken} broken",
            )
            for gain in facts.gains
        ]
    )
    rows = []
    for gain in facts.gains:
        marks = [("before", gain.before), ("after", gain.after)]
        if gain.prompted is not None:
            marks.insert(1, ("middle", gain.prompted))
        rows.append((label(gain.suite), False, marks))
    page.intervals(rows)
    legend = [("before", "before"), ("after", "after")]
    if any(gain.prompted is not None for gain in facts.gains):
        legend.insert(1, ("middle", "before, asked with the search's prompt"))
    page.legend(legend)
    for gain in facts.gains:
        kind = ("good" if gain.difference[0] > 0 else "warn") if gain.certain else ""
        page.callout(gain.sentence(), kind)


def _add_costs(page: Page, facts: Facts, store: Store) -> None:
    page.section(
        "Cost of every stage", "Seconds are those of the last run of a stage, without what it found done before."
    )
    kinds = facts.token_kinds
    rows = [
        (
            _link(cost.stage, cost.url, store),
            f"{cost.rows:,}",
            format_seconds(cost.seconds),
            *(f"{cost.tokens[kind]:,}" if kind in cost.tokens else "" for kind in kinds),
        )
        for cost in facts.costs
    ]
    totals = [f"{sum(cost.tokens.get(kind, 0) for cost in facts.costs):,}" for kind in kinds]
    rows.append((Markup("all"), "", format_seconds(sum(cost.seconds for cost in facts.costs)), *totals))
    page.table(("stage and its report", "rows", "time", *(f"{label(kind)} tokens" for kind in kinds)), rows)


def _link(stage: str, url: str, store: Store) -> Markup:
    """A relative link, so that the directory can be moved and served as a whole."""
    inside = url.startswith(f"{store.url}/")
    target = f"{url[len(store.url) + 1 :]}/report.html" if inside else f"{url}/report.html"
    return Markup('<a href="{}">{}</a>').format(target, label(stage))
