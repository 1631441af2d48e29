"""A search in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raylm.retrieval.index import Index
from raylm.retrieval.index_config import SearchConfig


def search(path: str, query: str, config: SearchConfig) -> None:
    """Print the documents that an index finds for a query.

    Raises:
        UserError: no index at `path`, a damaged one, or its encoder is not to be had.
    """
    index = Index.open(path)
    encoder = None if config.mode == "bm25" else index.encoder(config.model)
    hits = index.search_text([query], encoder, config.k, config.mode)[0]
    console = Console(highlight=False)
    console.print(
        f"[dim]{len(index):,} documents, {escape(index.source.name)} ({index.source.hash}), {index.kind}, "
        f"recall@10 {index.facts['recall_at_10']:.3f}; {config.mode}[/dim]"
    )
    if not hits:
        console.print("no document shares a word with the query")
        return
    table = Table("", "document", "score", "text", box=None, padding=(0, 1))
    for rank, hit in enumerate(hits, start=1):
        text = " ".join(index.text(hit.id).split())
        shown = text if len(text) <= config.letters else f"{text[: config.letters]}…"
        table.add_row(str(rank), escape(hit.id), f"{hit.score:.4f}", escape(shown))
    console.print(table)
