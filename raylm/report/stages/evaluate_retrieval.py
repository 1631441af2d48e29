"""Report of a ranking: its measures with intervals, what it finds and misses, and how it differs from another one."""

from __future__ import annotations

from typing import Any

from raylm.report import figures
from raylm.report.artefacts import finished, made_from, subtitle, timing
from raylm.report.page import Page, figure, format_p
from raylm.storage import Manifest, Store

QUERIES = "data/queries.parquet"
WORST = 20
"""Queries that are listed."""


def build(store: Store, related: dict[str, Store]) -> Page:
    """The page of a finished evaluate-retrieval artefact."""
    manifest = finished(store)
    found, rows = manifest.figures, store.read_table(QUERIES).to_pylist()
    page = Page("Evaluate retrieval: what queries find", subtitle(store, manifest))
    page.section(
        "Measures",
        "Means over queries with 95% bootstrap intervals. A query without a ranking counts as 0, and documents with "
        "equal scores are ordered by their ids.",
    )
    page.tiles(_tiles(store, manifest))
    compared = found.get("comparison", {})
    page.intervals([(name, False, _marks(item, compared.get(name))) for name, item in found["metrics"].items()])
    if compared:
        page.legend([("before", "baseline"), ("after", "this ranking")])
    _add_left_out(page, found)
    if compared:
        _add_comparison(page, compared)
        baseline = related.get("baseline")
        if baseline is not None:
            _add_changes(page, rows, baseline, next(iter(compared)))
    _add_ranks(page, rows, manifest)
    page.section("Made from")
    page.table(("what", "value"), made_from(manifest))
    return page


def _tiles(store: Store, manifest: Manifest) -> list[tuple[str, str, str]]:
    found, times = manifest.figures, timing(store)
    tiles = [
        (name, f"{item['mean']:.3f}", "95% interval {:.3f} to {:.3f}".format(*item["interval"]))
        for name, item in found["metrics"].items()
    ]
    ranks = "a run file" if "run" in manifest.inputs else manifest.config["mode"]
    tiles.append(("queries", f"{found['queries']:,}", f"split {manifest.config['split']}, ranked by {ranks}"))
    return [*tiles, ("queries a second", f"{times.get('queries_per_second', 0.0):,.1f}", "encoding and search")]


def _marks(item: dict[str, Any], compared: dict[str, Any] | None) -> list[tuple[str, tuple[float, float, float]]]:
    now = (item["mean"], *item["interval"])
    if compared is None:
        return [("after", now)]
    return [("before", (compared["before"], compared["before"], compared["before"])), ("after", now)]


def _add_left_out(page: Page, found: dict[str, Any]) -> None:
    said = {
        "without_relevant": "queries have no relevant document that is there",
        "missing_documents": "judged documents are missing",
        "missing_queries": "judged queries are missing",
    }
    parts = [f"{found['left_out'][key]} {words}" for key, words in said.items() if found["left_out"][key]]
    if parts:
        page.callout(f"Left out: {'; '.join(parts)}.", "warn")
    if found["unranked"]:
        page.callout(f"{found['unranked']} queries found nothing; they count as 0.", "warn")


def _add_comparison(page: Page, compared: dict[str, Any]) -> None:
    page.section(
        "Against the baseline",
        "The same queries in both. Differences with 95% bootstrap intervals over queries, and p-values of Fisher's "
        "paired randomisation test and of the paired t-test.",
    )
    rows = []
    for name, item in compared.items():
        tests = [format_p(item[key]).removeprefix("p ").removeprefix("= ").replace("< ", "<") for key in _TESTS]
        interval = "[{:+.3f}, {:+.3f}]".format(*item["interval"])
        means = f"{item['before']:.3f}", f"{item['after']:.3f}", f"{item['difference']:+.3f}"
        rows.append((name, *means, interval, *tests, item["better"], item["worse"], item["equal"]))
    header = ("measure", "baseline", "this", "difference", "interval", "randomisation", "t-test")
    page.table((*header, "better", "worse", "equal"), rows)


_TESTS = ("p_randomisation", "p_t")


def _add_changes(page: Page, rows: list[dict[str, Any]], baseline: Store, name: str) -> None:
    before = {row["id"]: row for row in baseline.read_table(QUERIES).to_pylist()}
    gaps = {row["id"]: row[name] - before[row["id"]][name] for row in rows}
    changed = [gap for gap in gaps.values() if gap]
    page.section("Queries that changed", f"By {name}.")
    if changed:
        page.figure(figures.histogram({"queries": changed}, title=f"Change of {name}", x="difference", y="queries"))
    order = sorted(rows, key=lambda row: gaps[row["id"]])
    for title, some in (("most worse", order[: WORST // 2]), ("most better", order[::-1][: WORST // 2])):
        listed = [row for row in some if (gaps[row["id"]] < 0) == (title == "most worse") and gaps[row["id"]]]
        if listed:
            page.table(
                (title, f"{name} before", "after", "first relevant before", "after"),
                [
                    (row["query"], f"{before[row['id']][name]:.3f}", f"{row[name]:.3f}",
                     before[row["id"]]["first_relevant"] or "", row["first_relevant"] or "")
                    for row in listed
                ],
            )  # fmt: skip


def _add_ranks(page: Page, rows: list[dict[str, Any]], manifest: Manifest) -> None:
    name = next(iter(manifest.figures["metrics"]))
    first = [row["first_relevant"] for row in rows if row["first_relevant"]]
    depth = max(first, default=1)
    reached = [sum(place <= rank for place in first) / len(rows) for rank in range(1, depth + 1)]
    page.section("Where relevant documents are")
    page.grid([
        figure(figures.histogram({"queries": [row[name] for row in rows]}, title=f"{name} of each query", x=name,
                                 y="queries")),
        figure(figures.lines({"queries": (list(range(1, depth + 1)), reached)}, title="First relevant one", x="rank",
                             y="share of queries that have one up to here", limits=(0, 1.02))),
    ])  # fmt: skip
    worst = sorted(rows, key=lambda row: (row[name], -row["relevant"]))[:WORST]
    page.section("Worst queries", f"The {len(worst)} with the lowest {name}.")
    page.table(
        ("query", name, "relevant", "rank of the first", "not found", "found instead"),
        [
            (row["query"], f"{row[name]:.3f}", row["relevant"], row["first_relevant"] or "none",
             ", ".join(row["missed"][:3]), ", ".join(row["found"][:3]))
            for row in worst
        ],
    )  # fmt: skip
