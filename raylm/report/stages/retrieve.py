"""Report of a retriever: what it finds before and after, how its distances moved, and what it learned from."""

from __future__ import annotations

from typing import Any

from raylm.report import figures
from raylm.report.artefacts import finished, made_from, subtitle
from raylm.report.page import Page, figure
from raylm.storage import Manifest, Store

_KINDS = {"distance_relevant": "relevant", "distance_hard": "hard negative", "distance_simple": "simple negative"}
_SOURCES = ("judged", "bm25", "ann", "random")
LISTED = 12
"""Queries that are listed on each side."""


def build(store: Store, related: dict[str, Store]) -> Page:
    """The page of a finished train-retriever artefact."""
    manifest = finished(store)
    page = Page("Retrieve: queries and documents", subtitle(store, manifest))
    config, where = manifest.config, "test" if manifest.config["test"] else "dev"
    page.section("Overview", f"{_recipe(config)} Means over the {where} queries, before the training and after it.")
    page.tiles(_tiles(manifest))
    for text in _cautions(manifest):
        page.callout(text)
    _add_training(page, store, config)
    _add_negatives(page, store, manifest)
    if manifest.figures["soft"]:
        _add_soft(page, manifest)
    _add_queries(page, store)
    page.section("Made from")
    page.table(("what", "value"), made_from(manifest))
    return page


def _recipe(config: dict[str, Any]) -> str:
    soft = config["soft"]
    note = f", soft labels {soft['kind']} at alpha {soft['alpha']}" if soft["kind"] != "none" else ""
    return f"Loss {config['loss']}{note}."


def _tiles(manifest: Manifest) -> list[tuple[str, str, str]]:
    found = manifest.figures
    tiles = [
        (name, f"{value:.3f}", f"before {found['before'][name]:.3f} ({value - found['before'][name]:+.3f})")
        for name, value in sorted(found["after"].items(), key=lambda item: (item[0][0] != "n", item[0]))
    ]
    held = found["collection"]
    used = held["queries_used"]
    pieces = f", in {held['pieces']:,} chunks" if held["pieces"] != held["documents"] else ""
    tiles.append(("documents", f"{held['documents']:,}", f"{held['repeated_texts']:,} repeat another's text{pieces}"))
    tiles.append(("training pairs", f"{held['pairs']:,}", f"{used['train']:,} queries, {used['dev']:,} on dev"))
    return tiles


def _cautions(manifest: Manifest) -> list[str]:
    """What a reader should know before believing the figures."""
    held, found = manifest.figures["collection"], []
    length = manifest.config["max_length"]
    for kind, count in held["overlong"].items():
        total = held["pieces"] if kind == "documents" else held["queries_used"]["train"]
        if count:
            found.append(f"{count:,} of {total:,} {kind} have more than {length} tokens; the rest of them is not read.")
    for key, what in (("missing_documents", "documents"), ("missing_queries", "queries")):
        for split, count in held[key].items():
            if count:
                found.append(f"Judgments of {split} name {count:,} {what} that are not there; they were left out.")
    if held["empty"]:
        found.append(f"{held['empty']:,} documents have no text; they cannot be found.")
    if held["overlaps"]:
        found.append(f"{held['overlaps']:,} training queries are asked in dev or test too; they were left out.")
    return found


def _add_training(page: Page, store: Store, config: dict[str, Any]) -> None:
    steps, looks = (store.read_table(f"data/{name}.parquet").to_pydict() for name in ("steps", "looks"))
    window = min(25, max(1, len(steps["loss"]) // 10))
    losses = figures.smooth(steps["loss"], window)
    moved = {
        words: (steps["step"], figures.smooth(steps[key], window)) for key, words in _KINDS.items() if key in steps
    }
    curves = {name: (looks["epoch"], looks[name]) for name in ("nDCG@10", "RR@10", "R@10")}
    page.section(
        "Training",
        "Relevant documents should come nearest and simple negatives (other queries' documents) lie farthest. If all "
        "three fall together, every text is getting the same vector.",
    )
    page.grid([
        figure(figures.lines({config["loss"]: (steps["step"], losses)}, title="Loss", x="optimizer step", y="a query")),
        figure(figures.lines(moved, title="Mean distance from the query", x="optimizer step", y="1 - cosine")),
        figure(figures.lines(curves, title="Dev queries", x="epoch", y="mean", limits=(0, 1))),
    ])  # fmt: skip


def _add_negatives(page: Page, store: Store, manifest: Manifest) -> None:
    steps = store.read_table("data/steps.parquet").to_pydict()
    used = {source: sum(steps[source]) for source in _SOURCES}
    total = sum(used.values())
    if not total:
        page.section("Negatives", "No hard negatives: the other queries' documents alone.")
        return
    page.section(
        "Negatives",
        "Where the hard negatives of the batches came from, and what became of the candidates that were looked at.",
    )
    page.table(("source", "used", "share"), [(name, f"{n:,}", f"{n / total:.1%}") for name, n in used.items() if n])
    rows = [(key.split(": ")[0], key.split(": ")[1], f"{count:,}") for key, count in
            sorted(manifest.figures["negatives"].items())]  # fmt: skip
    if rows:
        page.table(("source", "what became of them", "candidates"), rows)
    if store.exists("data/refreshes.parquet"):
        found = store.read_table("data/refreshes.parquet").to_pylist()
        page.table(
            ("before step", "own negatives kept", "of them new", "dropped by the teacher"),
            [(r["step"] + 1, f"{r['kept']:,}", f"{r['new_share']:.1%}", r["dropped_by_teacher"]) for r in found],
        )


def _add_soft(page: Page, manifest: Manifest) -> None:
    soft, config = manifest.figures["soft"], manifest.config["soft"]
    page.section(
        "Soft labels",
        f"{config['kind']}: {config['share']:.0%} of a target is soft, at {config['entropy']} nats, over the batch's "
        f"documents; {soft['documents']:,} documents have scores.",
    )
    if "coefficients" in soft:
        page.table(
            ("feature of the relevance head", "coefficient (standardised)"),
            [(name, f"{value:+.2f}") for name, value in soft["coefficients"].items()],
        )


def _add_queries(page: Page, store: Store) -> None:
    rows = store.read_table("data/queries.parquet").to_pylist()
    for row in rows:
        row["change"] = row["nDCG@10"] - row["nDCG@10 before"]
    better, worse = (sum(row["change"] * sign > 1e-9 for row in rows) for sign in (1, -1))
    page.section(
        "Queries", f"{better:,} are better than before, {worse:,} worse, {len(rows) - better - worse:,} alike."
    )
    order = sorted(rows, key=lambda row: (row["change"], row["query"]))
    shown = [row for row in order[:LISTED] if row["change"] < 0] + [r for r in order[-LISTED:] if r["change"] > 0]
    if not shown:
        return
    page.table(
        ("query id", "nDCG@10 before", "after", "change"),
        [(r["query"], f"{r['nDCG@10 before']:.2f}", f"{r['nDCG@10']:.2f}", f"{r['change']:+.2f}") for r in shown],
    )
