"""Parallel coordinates and scatters of trials, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raylm.report.figures import BLUE, GREY, ORANGE, drawing, start

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK = "#010203"


@drawing
def parallel(
    rows: Sequence[Mapping[str, Any]],
    axes: Sequence[str],
    colour: Sequence[float],
    *,
    title: str,
    log: Sequence[str] = (),
) -> Figure:
    """A line a trial through one vertical axis a parameter.

    Args:
        rows: values by the name of their axis; a trial without a value has a gap there.
        axes: names, from left to right; axes of other than numbers show their values as places.
        colour: of each trial, from 0 (grey) to 1 (orange); the latter are drawn on top.
        title: heading of the plot.
        log: axes that are logarithmic.
    """
    from matplotlib.colors import LinearSegmentedColormap

    figure, plot = start(title, "", "", height=3.6, width=max(6.2, 1.35 * len(axes)))
    places = np.full((len(rows), len(axes)), np.nan)
    for number, name in enumerate(axes):
        labels, found = _scaled([row.get(name) for row in rows], name in log)
        places[:, number] = found
        plot.axvline(number, color=GREY, linewidth=1.0, alpha=0.7)
        for at, text in labels:
            plot.text(number + 0.03, at, text, fontsize=7, color=_INK, va="center")
    shades = LinearSegmentedColormap.from_list("trials", [GREY, BLUE, ORANGE])
    for place in np.argsort(colour, kind="stable"):
        strength = float(colour[place])
        plot.plot(
            range(len(axes)), places[place], color=shades(strength), alpha=0.25 + 0.7 * strength,
            linewidth=0.8 + 1.6 * strength, marker="o", markersize=3,
        )  # fmt: skip
    plot.set_xticks(range(len(axes)), [_broken(name) for name in axes], fontsize=7)
    plot.set_yticks([])
    plot.set_xlim(-0.1, len(axes) - 0.4)
    plot.grid(visible=False)
    return figure


@drawing
def scatter(
    groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str, x: str, y: str, joined: str
) -> Figure:
    """Points in groups.

    Args:
        groups: name to (x, y); the last is drawn strongest.
        title: heading of the plot.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        joined: name of the group whose points are joined.
    """
    figure, plot = start(title, x, y)
    colours = [GREY, BLUE, ORANGE][-len(groups) :]
    for (name, (xs, ys)), colour in zip(groups.items(), colours, strict=True):
        plot.scatter(xs, ys, color=colour, s=30, label=name, zorder=3)
        if name == joined and len(xs) > 1:
            order = np.argsort(xs, kind="stable")
            plot.plot(np.asarray(xs)[order], np.asarray(ys)[order], color=colour, linewidth=1.2, alpha=0.7)
    plot.legend(frameon=False, fontsize=9)
    return figure


def _scaled(values: Sequence[Any], log: bool) -> tuple[list[tuple[float, str]], np.ndarray]:
    """Labels of an axis as (place, text), and the place of each value from 0 to 1."""
    held = [value for value in values if value is not None]
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in held)
    if not numbers or len(set(held)) < 3:
        names = sorted(set(held)) if numbers else sorted({str(value) for value in held})
        at = {name: number / max(1, len(names) - 1) if len(names) > 1 else 0.5 for number, name in enumerate(names)}
        key = (lambda value: value) if numbers else str
        labels = [(place, f"{name:.3g}" if numbers else str(name)) for name, place in at.items()]
        return labels, np.array([np.nan if value is None else at[key(value)] for value in values])
    array = np.array([np.nan if value is None else float(value) for value in values])
    drawn = np.log(array) if log else array
    low, high = float(np.nanmin(drawn)), float(np.nanmax(drawn))
    ticks = np.linspace(low, high, 4)
    labels = [((tick - low) / (high - low), f"{np.exp(tick) if log else tick:.3g}") for tick in ticks]
    return labels, (drawn - low) / (high - low)


def _broken(name: str) -> str:
    return name.replace(".", ".\n").replace("_", " ")
