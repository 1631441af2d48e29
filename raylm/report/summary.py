"""A pipeline on one screen of the terminal: the same facts as on its page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raylm.progress import format_seconds
from raylm.report.facts import Facts, collect
from raylm.report.page import Interval, format_p, label
from raylm.storage import Store

_BAR = 24
_LOG_WIDTH = 110


def print_summary(store: Store, stages: Sequence[str], console: Console | None = None) -> None:
    """Print funnel, accuracy before and after, tokens and seconds by stage, and where everything is.

    Args:
        store: the pipeline's directory.
        stages: sub-directories of its stages, in the order they ran.
        console: where to print; standard output by default.
    """
    # A log has no width of its own; what is narrower than the tables would cut their words.
    console = console or (Console() if sys.stdout.isatty() else Console(width=_LOG_WIDTH))
    facts = collect({name: store.child(name) for name in stages})
    console.print()
    if facts.funnel:
        console.print(funnel_table(facts.funnel, "from problems to chains"))
        console.print()
    console.print(_costs(facts))
    console.print()
    if facts.gains:
        console.print(_gains(facts))
        unchanged = [label(gain.suite) for gain in facts.gains if not gain.certain]
        if unchanged:
            console.print(
                f"no change is shown on {escape(', '.join(unchanged))}: the interval holds zero", style="yellow"
            )
    console.print()
    console.print(f"report     {escape(store.url)}/report.html", highlight=False, soft_wrap=True)
    if "finetune" in stages:
        console.print(f"model      {escape(store.url)}/finetune/model", highlight=False, soft_wrap=True)
    console.print(f"artefacts  {escape(store.url)}/<stage>/data/*.parquet", highlight=False, soft_wrap=True)


def funnel_table(funnel: Mapping[str, int], title: str | None = None) -> Table:
    """Counts by name, each with a bar in proportion to the largest."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    top = max(funnel.values(), default=0) or 1
    for name, count in funnel.items():
        table.add_row(escape(label(name)), f"{count:,}", f"[cyan]{'█' * round(_BAR * count / top)}[/cyan]")
    return table


def _costs(facts: Facts) -> Table:
    kinds = facts.token_kinds
    table = Table(box=None, pad_edge=False, title="cost in time and tokens", title_justify="left", header_style="dim")
    table.add_column("stage")
    for name in ("rows", "time", *(label(kind) for kind in kinds)):
        table.add_column(name, justify="right")
    for cost in facts.costs:
        tokens = (f"{cost.tokens[kind]:,}" if kind in cost.tokens else "" for kind in kinds)
        table.add_row(escape(label(cost.stage)), f"{cost.rows:,}", format_seconds(cost.seconds), *tokens)
    totals = (f"{sum(cost.tokens.get(kind, 0) for cost in facts.costs):,}" for kind in kinds)
    table.add_row("all", "", format_seconds(sum(cost.seconds for cost in facts.costs)), *totals, style="bold")
    return table


def _gains(facts: Facts) -> Table:
    prompted = any(gain.prompted is not None for gain in facts.gains)
    table = Table(box=None, pad_edge=False, title="accuracy, 95% intervals", title_justify="left", header_style="dim")
    table.add_column("suite")
    columns = ("before", "search prompt", "after") if prompted else ("before", "after")
    for name in (*columns, "points", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for gain in facts.gains:
        middle = [_share(gain.prompted) if gain.prompted else ""] if prompted else []
        at, low, high = (100 * value for value in gain.difference)
        p_value = format_p(gain.p_value).removeprefix("p ").removeprefix("= ")
        cells = [_share(gain.before), *middle, _share(gain.after), f"{at:+.1f} [{low:+.0f}, {high:+.0f}]", p_value]
        colour = ("green" if gain.difference[0] > 0 else "red") if gain.certain else "yellow"
        table.add_row(escape(label(gain.suite)), *(escape(cell) for cell in cells), style=colour)
    return table


def _share(interval: Interval) -> str:
    at, low, high = (100 * value for value in interval)
    return f"{at:.1f}% [{low:.0f}, {high:.0f}]"
