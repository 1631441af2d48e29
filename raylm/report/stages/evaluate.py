"""Report of an evaluate artefact: accuracies with intervals, the paired comparison, and answers to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raylm.evaluation.stats import wilson
from raylm.records import Judgement
from raylm.report import figures
from raylm.report.artefacts import find_input, finished, iterate, made_from, spread, subtitle, timing
from raylm.report.page import Interval, Page, format_interval, format_p, label, response
from raylm.storage import Manifest, Store

EXAMPLES = 12
"""Examples of each kind on a page."""


def build(store: Store, related: dict[str, Store]) -> Page:
    """The page of a finished evaluate artefact."""
    manifest = finished(store)
    suites, comparison = manifest.figures["suites"], manifest.figures.get("comparison", {})
    page = Page("Evaluate: accuracy", subtitle(store, manifest))
    page.section(
        "Accuracy",
        "Share of questions whose greedy response was verified as correct, with 95% intervals (Wilson). An answer that "
        "could not be checked counts as not correct.",
    )
    page.tiles(_tiles(store, manifest, comparison))
    add_accuracy(page, suites, comparison)
    if manifest.figures.get("failed"):
        page.callout(f"{len(manifest.figures['failed'])} questions ended in an error and are left out.", "warn")
    page.section("Figures by suite and task")
    page.table(*_score_table(suites))
    _add_sampled(page, suites)
    baseline = related.get("baseline") or find_input(store, manifest.inputs.get("baseline"))
    rows = [row for row in iterate(store, Judgement) if row.sample == 0]
    if comparison:
        add_comparison(page, comparison)
        add_changes(page, rows, baseline)
    _add_answers(page, rows)
    page.section("Made from")
    page.table(("what", "value"), made_from(manifest))
    return page


def add_accuracy(page: Page, suites: dict[str, Any], comparison: dict[str, Any]) -> None:
    """Dots with whiskers, a line a suite and a task; before and after in one line where there is a comparison."""
    rows: list[tuple[str, bool, Sequence[tuple[str, Interval]]]] = []
    for suite, figures_ in suites.items():
        compared = comparison.get(suite, {})
        rows.append((label(suite), False, _marks(figures_, compared)))
        tasks = figures_["tasks"] if len(figures_["tasks"]) > 1 else {}
        for task, part in tasks.items():
            rows.append((task, True, _marks(part, compared.get("tasks", {}).get(task, {}))))
    page.intervals(rows)
    if comparison:
        page.legend([("before", "before"), ("after", "after")])


def add_comparison(page: Page, comparison: dict[str, Any]) -> None:
    """The paired differences with their intervals and p-values."""
    page.section(
        "Before and after",
        "Both models answered the same questions. Differences are in percentage points with 95% bootstrap intervals "
        "over questions; the p-value is McNemar's exact test on the questions that changed.",
    )
    bars: list[tuple[str, bool, Sequence[tuple[str, Interval]]]] = []
    table = []
    for suite, whole in comparison.items():
        tasks = whole["tasks"] if len(whole["tasks"]) > 1 else {}
        for name, item, minor in [(label(suite), whole, False), *((task, part, True) for task, part in tasks.items())]:
            interval = (item["difference"], *item["interval"])
            bars.append((name, minor, [("after", interval)]))
            table.append(
                (
                    f"{label(suite)} / {name}" if minor else name,
                    item["questions"],
                    f"{item['before']:.1%}",
                    f"{item['after']:.1%}",
                    f"{100 * item['difference']:+.1f}",
                    item["fixed"],
                    item["broken"],
                    format_p(item["p_value"]).removeprefix("p ").removeprefix("= ").replace("< ", "<"),
                )
            )
    page.intervals(bars, signed=True)
    page.table(("suite", "questions", "before", "after", "points", "fixed", "broken", "p-value"), table)
    unpaired = sum(item["unpaired"] for item in comparison.values())
    if unpaired:
        page.callout(f"{unpaired} questions were answered on one side only and are left out of the comparison.", "warn")


def add_changes(page: Page, rows: Sequence[Judgement], baseline: Store | None, limit: int = EXAMPLES) -> None:
    """Questions that were fixed and broken, with both responses."""
    if baseline is None:
        page.callout("The baseline's artefact was not found beside this one, so its responses cannot be shown.")
        return
    before = {(row.suite, row.problem_id): row for row in iterate(baseline, Judgement) if row.sample == 0}
    pairs = [(before[key], row) for row in rows if (key := (row.suite, row.problem_id)) in before]
    for title, was_right in (("Fixed", False), ("Broken", True)):
        changed = [
            (old, new)
            for old, new in pairs
            if (old.verdict == "correct") is was_right and (new.verdict == "correct") is not was_right
        ]
        shown = f"{limit} of {len(changed)} questions." if len(changed) > limit else f"{len(changed)} questions."
        page.section(title, shown)
        for old, new in changed[:limit]:
            parts = [
                response("before", old.verdict, old.answer, old.response),
                response("after", new.verdict, new.answer, new.response),
            ]
            page.example(new.question, f"{label(new.suite)} / {new.task}, gold answer {new.gold}", parts)


def _add_answers(page: Page, rows: Sequence[Judgement]) -> None:
    for verdict in ("correct", "wrong", "unverifiable"):
        found = [row for row in rows if row.verdict == verdict]
        if not found:
            continue
        shown = spread(found, EXAMPLES)
        page.section(
            f"{verdict.capitalize()} responses", f"{len(shown)} of {len(found)}, spread evenly over the questions."
        )
        for row in shown:
            end = ", ran out of tokens" if row.finish_reason == "length" else ""
            note = f"{label(row.suite)} / {row.task}, gold answer {row.gold}{end}"
            page.example(row.question, note, [response("greedy", row.verdict, row.answer, row.response)])


def _marks(item: dict[str, Any], compared: dict[str, Any]) -> list[tuple[str, Interval]]:
    now: Interval = (item["accuracy"], *item["interval"])
    if not compared:
        return [("after", now)]
    return [("before", before_interval(compared)), ("after", now)]


def before_interval(compared: dict[str, Any]) -> Interval:
    """The baseline's accuracy with its Wilson interval, from one entry of a comparison."""
    total = compared["questions"]
    return (compared["before"], *wilson(round(compared["before"] * total), total))


def _tiles(store: Store, manifest: Manifest, comparison: dict[str, Any]) -> list[tuple[str, str, str]]:
    tiles = []
    for suite, item in manifest.figures["suites"].items():
        note = f"95% interval {format_interval((item['accuracy'], *item['interval'])).split(' ', 1)[1]}"
        if suite in comparison:
            compared = comparison[suite]
            note = f"was {compared['before']:.1%}, {format_p(compared['p_value'])}"
        tiles.append((label(suite), f"{item['accuracy']:.1%}", note))
    times = timing(store)
    rate = times.get("questions_per_second")
    tiles.append(("generated tokens", f"{manifest.tokens.get('generated', 0):,}", ""))
    if rate:
        tiles.append(("questions a second", f"{rate:.2f}", f"engine {manifest.model.get('engine', '')}"))
    return tiles


def _score_table(suites: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    header = ("suite", "task", "questions", "correct", "accuracy", "unverifiable", "unfinished", "tokens a response")
    rows = []
    for suite, whole in suites.items():
        for task, item in [("all", whole), *whole["tasks"].items()]:
            responses = item["questions"] * (1 + item.get("sampled", 0))
            rows.append(
                (
                    label(suite),
                    task,
                    item["questions"],
                    item["correct"],
                    f"{item['accuracy']:.1%}",
                    item["unverifiable"],
                    item["unfinished"],
                    f"{item['generated_tokens'] / max(1, responses):.0f}",
                )
            )
    return header, rows


def _add_sampled(page: Page, suites: dict[str, Any]) -> None:
    curves = {
        label(suite): ([int(k) for k in item["pass_at"]], [100 * value for value in item["pass_at"].values()])
        for suite, item in suites.items()
        if "pass_at" in item
    }
    if not curves:
        return
    page.section(
        "Sampled responses", "pass@k is the unbiased estimate over the sampled responses; maj@n lets them vote."
    )
    page.figure(figures.lines(curves, title="pass@k", x="k (samples)", y="questions solved (%)", limits=(0, 102)))
    rows = [
        (label(suite), item["sampled"], f"{item['majority']:.1%}", f"{item['accuracy']:.1%}")
        for suite, item in suites.items()
        if "pass_at" in item
    ]
    page.table(("suite", "samples (n)", "maj@n", "greedy"), rows)
