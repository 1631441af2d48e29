"""Report of scored texts: how scores spread, what moves them, and the ends of the list."""

from __future__ import annotations

from typing import Any

from raylm.report import figures, rewards
from raylm.report.artefacts import finished, made_from, subtitle
from raylm.report.page import Page, figure
from raylm.storage import Store

ENDS = 10
"""Texts shown from either end."""


def build(store: Store, related: dict[str, Store]) -> Page:
    """The page of a finished score artefact."""
    manifest = finished(store)
    table, found = store.read_data(), manifest.figures
    scores = table.column("score").to_pylist()
    page = Page("Scores: texts and their dimensions", subtitle(store, manifest))
    page.section("Overview")
    middle = sorted(scores)[len(scores) // 2]
    page.tiles([
        ("texts", f"{len(scores):,}", f"{found['truncated']:,} were cut to the context"),
        ("median score", rewards.number(middle), "log-odds against an average response"),
    ])  # fmt: skip
    shares = {
        name: sum(map(abs, table.column(f"attribution_{name}").to_pylist())) / len(scores) for name in found["branches"]
    }
    page.grid([
        figure(figures.histogram({"texts": scores}, title="Scores", x="score, log-odds", y="texts")),
        figure(figures.barh(shares, title="What moves the scores", x="mean size of a branch's share, log-odds")),
    ])  # fmt: skip
    if found["flags"]:
        page.section("Flags", "Texts that were cut, and branches that had nothing to say or failed.")
        page.bars(found["flags"])
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    columns = table.to_pydict()
    for title, rows in (("Highest", order[:ENDS]), ("Lowest", order[::-1][:ENDS])):
        page.section(title)
        page.table(("score", "response", "largest shares"), [_row(columns, found["branches"], row) for row in rows])
    page.section("Made from")
    page.table(("what", "value"), made_from(manifest))
    return page


def _row(columns: dict[str, list[Any]], branches: list[str], row: int) -> tuple[str, str, str]:
    shares = sorted(((columns[f"attribution_{name}"][row], name) for name in branches), key=lambda item: -abs(item[0]))
    said = ", ".join(f"{name} {share:+.2f}" for share, name in shares[:3])
    return f"{columns['score'][row]:+.2f}", columns["response"][row][:160], said
