"""The funnel of a synthesize artefact on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raylm.storage import Manifest

_BAR = 24


def print_funnel(manifest: Manifest, console: Console | None = None) -> None:
    """Print the counts from problems to chains, and what was dropped and why, on standard error by default."""
    console = console or Console(stderr=True)
    top = max(manifest.funnel.values(), default=0) or 1
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for name, count in manifest.funnel.items():
        table.add_row(escape(name.replace("_", " ")), f"{count:,}", f"[cyan]{'█' * round(_BAR * count / top)}[/cyan]")
    console.print(table)
    dropped = manifest.figures.get("dropped", {})
    if dropped:
        listed = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in dropped.items())
        console.print(f"dropped: {escape(listed)}", highlight=False)
    if not manifest.figures.get("evaluation_questions"):
        console.print("no evaluation problems were given: nothing was decontaminated", style="yellow")
