"""Report of an index: what is in it, how near queries come, and what they find."""

from __future__ import annotations

from raylm.report import figures
from raylm.report.artefacts import finished, made_from, subtitle, timing
from raylm.report.page import Page, figure, response
from raylm.storage import Manifest, Store


def build(store: Store, related: dict[str, Store]) -> Page:
    """The page of a finished index artefact."""
    manifest = finished(store)
    found = manifest.figures
    page = Page("Index: documents to be found", subtitle(store, manifest))
    page.section("Overview")
    page.tiles(_tiles(store, manifest))
    if found["overlong"] and not found["chunked"]:
        page.callout(f"Of {found['overlong']} documents only the beginning was read: they are longer.", "warn")
    if found["empty"] or found["repeated_texts"]:
        page.callout(
            f"{found['empty']} documents without text are left out; {found['repeated_texts']} have a text that an "
            "earlier document has too, so that the order of the two says nothing."
        )
    _add_plots(page, store)
    page.section("What queries find", "Queries of the collection with the three nearest documents by their vectors.")
    for row in store.read_table("data/examples.parquet").to_pylist():
        triples = zip(row["ids"], row["scores"], row["texts"], strict=True)
        parts = [response(f"{name} ({score:.3f})", "", None, text) for name, score, text in triples]
        page.example(row["query"], "", parts)
    page.section("Made from")
    page.table(("what", "value"), made_from(manifest))
    return page


def _tiles(store: Store, manifest: Manifest) -> list[tuple[str, str, str]]:
    found, times = manifest.figures, timing(store)
    pieces = f"{found['rows']:,} pieces" if found["chunked"] else ""
    exact = (
        "exact search" if found["kind"] == "flat" else f"against the exact search, {found['recall_queries']} queries"
    )
    size = sum(store.fs.size(store.path(name)) for name in manifest.outputs if name.startswith("index/"))
    rate = times.get("rows_per_second_a_worker")
    return [
        ("documents", f"{found['documents']:,}", pieces),
        ("index", found["kind"], f"{found['dimension']} coordinates"),
        ("recall@10", f"{found['recall_at_10']:.3f}", exact),
        ("size", f"{size / 2**20:,.1f} MiB", "vectors, texts and words"),
        ("encoded", f"{rate:,.0f}/s" if rate else "", "documents a second and worker"),
    ]


def _add_plots(page: Page, store: Store) -> None:
    scores = store.read_table("data/scores.parquet").to_pydict()
    words = store.read_table("data/lengths.parquet").to_pydict()["words"]
    named = {"any document": scores["any"], "10th nearest": scores["tenth"], "nearest": scores["nearest"]}
    page.section(
        "Vectors and texts",
        "How near documents are to queries of the collection, drawn once. Where any document is as near as the nearest "
        "one, the encoder has collapsed.",
    )
    page.grid([
        figure(figures.histogram(named, title="Cosine with a query", x="cosine", y="queries",
                                 colours=(figures.GREY, figures.ORANGE, figures.BLUE))),
        figure(figures.histogram({"documents": words}, title="Lengths", x="words of a document", y="documents")),
    ])  # fmt: skip
