"""Self-contained HTML pages: sections of tables, figures and bars, without a network and readable in light and dark.

All text is escaped, since much of it was written by a language model. The page's content policy allows no script
but raylm's own, named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raylm.storage import Store

_NUMBER = re.compile(r"|<?[+-]?\d[\d,.hms]*%?|\[[-+\d., ]+\]")  # also a time, an interval, or nothing

Interval = tuple[float, float, float]
"""(estimate, low, high)"""


@dataclass(slots=True)
class Section:
    """One card of a page; `blocks` are HTML."""

    title: str
    intro: str = ""
    blocks: list[Markup] = field(default_factory=list)


class Page:
    """Collects blocks section by section and renders them into one file."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self.sections: list[Section] = []
        self.needs_script = False

    def section(self, title: str, intro: str = "") -> None:
        """Start a section; later blocks go into it."""
        self.sections.append(Section(title, intro))

    def add(self, block: Markup) -> None:
        """Add finished HTML. Only `Markup` is accepted, so plain text cannot slip in unescaped."""
        if not isinstance(block, Markup):
            raise TypeError("add() takes Markup; use text() for plain text")
        self.sections[-1].blocks.append(block)

    def text(self, content: str) -> None:
        """A paragraph."""
        self.add(block("text", content))

    def callout(self, content: str, kind: str = "") -> None:
        """A highlighted paragraph; kind is `good`, `warn` or empty."""
        self.add(block("callout", kind, content))

    def tiles(self, items: Sequence[tuple[str, str, str]]) -> None:
        """Headline numbers as (label, value, note)."""
        self.add(block("tiles", items))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; columns of numbers, and of text made of digits and signs, are aligned right."""
        numeric = [bool(rows) and all(_looks_numeric(row[index]) for row in rows) for index in range(len(header))]
        self.add(block("table", header, rows, numeric))

    def figure(self, image: Markup, caption: str = "") -> None:
        """An inline image, as `raylm.report.figures` makes them."""
        self.add(figure(image, caption))

    def grid(self, blocks: Sequence[Markup]) -> None:
        """Blocks side by side where the window is wide enough."""
        self.add(block("grid", blocks))

    def funnel(self, counts: Mapping[str, int]) -> None:
        """Counts that fall from stage to stage; each bar is relative to the largest."""
        top = max(counts.values(), default=0) or 1
        stages, previous = [], None
        for name, count in counts.items():
            share = ""
            if previous:
                ratio = count / previous  # above 1 where the unit changes, as from problems to pairs
                share = f"{ratio:.0%} of the line above" if ratio <= 1 else f"{ratio:.1f} for each one above"
            stages.append({"name": label(name), "count": f"{count:,}", "width": 100 * count / top, "share": share})
            previous = count
        self.add(block("funnel", stages))

    def bars(self, counts: Mapping[str, int]) -> None:
        """Named counts as bars, largest first."""
        top = max(counts.values(), default=0) or 1
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        rows = [{"name": label(name), "count": f"{count:,}", "width": 100 * count / top} for name, count in ordered]
        self.add(block("bars", rows))

    def intervals(self, rows: Sequence[tuple[str, bool, Sequence[tuple[str, Interval]]]], signed: bool = False) -> None:
        """Shares with their intervals on one common scale.

        Args:
            rows: (name, whether it is a part of the row above, [(kind, (estimate, low, high))]); kinds are
                `before`, `middle` and `after`, which only choose the colour.
            signed: the numbers are differences in [-1, 1], drawn around a line at zero.
        """
        values = [number for _, _, marks in rows for _, interval in marks for number in interval]
        high = min(1.0, -(-max(map(abs, values), default=0.0) * 20 // 1) / 20) or 0.05
        low = -high if signed else 0.0

        def place(value: float) -> float:
            return round(100 * (value - low) / (high - low), 3)

        drawn = [
            {
                "name": name,
                "minor": minor,
                "marks": [
                    {
                        "kind": kind,
                        "at": place(at),
                        "low": place(least),
                        "width": round(place(most) - place(least), 3),
                        "title": format_interval((at, least, most), signed),
                    }
                    for kind, (at, least, most) in marks
                ],
            }
            for name, minor, marks in rows
        ]
        self.add(block("intervals", drawn, f"{low:.0%}", f"{high:.0%}", place(0.0) if signed else None))

    def legend(self, items: Sequence[tuple[str, str]]) -> None:
        """Colours and their meaning, as (kind, name)."""
        self.add(block("legend", items))

    def example(self, title: str, note: str, parts: Sequence[Markup], opened: bool = False) -> None:
        """A foldable example whose parts stand side by side."""
        self.add(block("example", title, note, parts, opened))

    def trees(self, trees: Sequence[Mapping[str, Any]]) -> None:
        """A browser of search trees, as `raylm.report.trees.drawing` makes them."""
        self.needs_script = True
        self.add(block("trees", embedded_json(list(trees))))

    def render(self) -> str:
        """The page as HTML."""
        script = Markup(_source("tree.js")) if self.needs_script else Markup("")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        return (
            _environment()
            .get_template("page.html")
            .render(
                title=self.title,
                subtitle=self.subtitle,
                sections=self.sections,
                style=Markup(_source("style.css")),
                script=script,
                script_source=Markup(f"'sha256-{digest}'" if script else "'none'"),
            )
        )

    def write(self, store: Store, name: str = "report.html") -> str:
        """Write the page into an artefact; returns its path."""
        store.write_bytes(name, self.render().encode("utf-8", "replace"))
        return f"{store.url}/{name}"


def block(name: str, *arguments: Any) -> Markup:
    """One block of HTML from the templates, with every plain string escaped."""
    return Markup(getattr(_blocks(), name)(*arguments))


def figure(image: Markup, caption: str = "") -> Markup:
    """A figure for `Page.grid`."""
    return block("figure", image, caption)


def response(title: str, verdict: str, answer: str | None, body: str) -> Markup:
    """A model's response with its verdict, for `Page.example`."""
    return block("response", title, verdict, answer, body)


def steps(title: str, verdict: str, texts: Sequence[str], shared: int = 0, pivot: int = -1) -> Markup:
    """A chain of steps for `Page.example`: the first `shared` are greyed, the one at index `pivot` is marked."""
    items = [{"text": text.strip(), "kind": "shared" if index < shared else ""} for index, text in enumerate(texts)]
    return block("steps", title, verdict, items, pivot)


def embedded_json(value: Any) -> Markup:
    """JSON that may stand inside a script element: no character of it can end the element or start a comment."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def format_interval(interval: Interval, signed: bool = False) -> str:
    """`12.5% [8.1, 18.9]`, or with signs for differences, in points."""
    at, low, high = (100 * value for value in interval)
    return f"{at:+.1f} points [{low:+.1f}, {high:+.1f}]" if signed else f"{at:.1f}% [{low:.1f}, {high:.1f}]"


def format_p(value: float) -> str:
    """A p-value with as many digits as it deserves."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def label(name: str) -> str:
    """A key as words."""
    return name.replace("_", " ")


def _looks_numeric(cell: Any) -> bool:
    return isinstance(cell, (int, float)) or (isinstance(cell, str) and _NUMBER.fullmatch(cell) is not None)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("raylm.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _blocks() -> Any:
    return _environment().get_template("blocks.html").module


def _source(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]
