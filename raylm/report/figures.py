"""Line plots and histograms as inline SVG whose text and axes take the colour of the page around them."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Wong's palette: told apart by colour-blind readers, and visible on white and on black.
BLUE, ORANGE, GREEN, GREY, AMBER, PURPLE = "#2f8fd0", "#d9662b", "#1a9e77", "#8a929c", "#d19a1b", "#a177c9"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, AMBER, GREY)
_INK = "#010203"  # replaced by the page's own text colour

_NUMBERED_ID = re.compile(
    r' id="(?:figure|patch|axes|text|matplotlib\.axis|line2d|xtick|ytick|legend|LineCollection)_\d+"'
)  # never referred to, and the same in every figure of a page

_STYLE = {"svg.fonttype": "none", "text.parse_math": False}  # text stays text, and a dollar sign a dollar sign

Points = tuple[Sequence[float], Sequence[float]]
"""(x, y)"""


def drawing(plot: Callable[..., Figure]) -> Callable[..., Markup]:
    """Draw under raylm's settings without touching those of the process, and return SVG."""

    @wraps(plot)
    def styled(*args: Any, **kwargs: Any) -> Markup:
        import matplotlib as mpl

        with mpl.rc_context(_STYLE):
            return _svg(plot(*args, **kwargs))

    return styled


@drawing
def lines(
    series: Mapping[str, Points],
    *,
    title: str,
    x: str,
    y: str,
    log: bool = False,
    log_x: bool = False,
    limits: tuple[float, float] | None = None,
    level: tuple[float, str] | None = None,
    faint: Sequence[str] = (),
    unnamed: Sequence[str] = (),
) -> Figure:
    """Curves over a common axis.

    Args:
        series: name to points.
        title: heading of the plot.
        x: label of the horizontal axis, with its unit.
        y: label of the vertical axis, with its unit.
        log: logarithmic vertical axis.
        log_x: logarithmic horizontal axis, in powers of two.
        limits: of the vertical axis.
        level: height and name of a dashed reference line.
        faint: names drawn thin and pale, for raw values behind a smoothed curve.
        unnamed: names that the legend leaves out.
    """
    figure, axes = start(title, x, y)
    colours = iter(CYCLE * (1 + len(series) // len(CYCLE)))
    for name, (xs, ys) in series.items():
        thin = name in faint
        axes.plot(
            xs,
            ys,
            color=GREY if thin else next(colours),
            alpha=0.6 if thin else 1.0,
            linewidth=1.0 if thin else 1.8,
            label=f"_{name}" if name in unnamed else name,
            marker="o" if len(xs) < 30 and not thin else None,
            markersize=3.5,
        )
    if level is not None:
        axes.axhline(level[0], color=_INK, linewidth=1.0, linestyle="--", alpha=0.6, label=level[1])
    if log:
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    if limits is not None:
        axes.set_ylim(*limits)
    if log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
    elif all(float(at).is_integer() for xs, _ in series.values() for at in xs):
        _whole_numbers(axes.xaxis)
    if len(series) + (level is not None) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


@drawing
def histogram(
    groups: Mapping[str, Sequence[float]],
    *,
    title: str,
    x: str,
    y: str,
    bins: int = 24,
    colours: Sequence[str] = CYCLE,
) -> Figure:
    """Stacked histograms over common bins.

    Args:
        groups: name to values.
        title: heading of the plot.
        x: label of the horizontal axis, with its unit.
        y: label of the vertical axis.
        bins: at most this many bins; whole numbers in a small range get one bin each.
        colours: of the groups, in order.
    """
    figure, axes = start(title, x, y)
    values = [value for group in groups.values() for value in group]
    edges: Any = bins
    if values and all(float(value).is_integer() for value in values) and max(values) - min(values) < bins:
        edges = [index - 0.5 for index in range(int(min(values)), int(max(values)) + 2)]
        _whole_numbers(axes.xaxis)
    _whole_numbers(axes.yaxis)
    axes.hist(
        list(groups.values()),
        bins=edges,
        stacked=True,
        label=list(groups),
        color=list(colours[: len(groups)]),
        rwidth=0.92,
    )
    if len(groups) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


@drawing
def scatter(
    groups: Mapping[str, Points],
    *,
    title: str,
    x: str,
    y: str,
    x_limits: tuple[float, float] | None = None,
    y_limits: tuple[float, float] | None = None,
) -> Figure:
    """Points by group over common axes; the first group is drawn pale and beneath the others.

    Args:
        groups: name to points.
        title: heading of the plot.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        x_limits: of the horizontal axis.
        y_limits: of the vertical axis.
    """
    figure, axes = start(title, x, y, height=4.2)
    colours = [GREY, *(BLUE, ORANGE, GREEN, PURPLE, AMBER, "#c44e6e")]
    markers = "oo^sDvP"
    for number, (name, (xs, ys)) in enumerate(groups.items()):
        axes.scatter(
            xs,
            ys,
            s=12 if number == 0 else 26,
            color=colours[number % len(colours)],
            marker=markers[number % len(markers)],
            alpha=0.35 if number == 0 else 0.85,
            linewidths=0,
            label=f"{name} ({len(xs)})",
        )
    if x_limits is not None:
        axes.set_xlim(*x_limits)
    if y_limits is not None:
        axes.set_ylim(*y_limits)
    if any(len(xs) for xs, _ in groups.values()):
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


@drawing
def barh(values: Mapping[str, float], *, title: str, x: str) -> Figure:
    """Horizontal bars in the order given, first on top."""
    figure, axes = start(title, x, "", height=max(2.6, 0.17 * len(values) + 0.9))
    names = list(values)[::-1]
    axes.barh(range(len(names)), [values[name] for name in names], color=BLUE, height=0.72)
    axes.set_yticks(range(len(names)), names, fontsize=8 if len(names) < 40 else 6)
    axes.grid(visible=False, axis="y")
    return figure


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last `window` values at each place (fewer at the start)."""
    total, out = 0.0, []
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        out.append(total / min(index + 1, window))
    return out


def start(title: str, x: str, y: str, height: float = 3.0, width: float = 6.2) -> tuple[Figure, Axes]:
    """An empty plot in the style of all of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.tick_params(colors=_INK)
    axes.grid(visible=True, color=GREY, alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure, axes


def _whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins="auto", integer=True))


def _svg(figure: Figure) -> Markup:
    import matplotlib as mpl

    for axes in figure.axes:
        legend = axes.get_legend()
        for entry in legend.get_texts() if legend is not None else ():
            entry.set_color(_INK)
    # Equal data must give equal bytes, and the ids of two plots on one page must differ.
    title = figure.axes[0].get_title(loc="left")
    salt = hashlib.sha256(title.encode()).hexdigest()[:8]
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    return Markup(_NUMBERED_ID.sub("", text))
