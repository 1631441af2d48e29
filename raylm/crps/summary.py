"""The funnel of a synthesize artefact on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from raylm.report.page import label
from raylm.report.summary import funnel_table
from raylm.storage import Manifest


def print_funnel(manifest: Manifest, console: Console | None = None) -> None:
    """Print the counts from problems to chains, and what was dropped and why, on standard error by default."""
    console = console or Console(stderr=True)
    console.print(funnel_table(manifest.funnel))
    dropped = manifest.figures.get("dropped", {})
    if dropped:
        listed = ", ".join(f"{count:,} {label(name)}" for name, count in dropped.items())
        console.print(f"dropped: {escape(listed)}", highlight=False)
    if not manifest.figures.get("evaluation_questions"):
        console.print("no evaluation problems were given: nothing was decontaminated", style="yellow")
