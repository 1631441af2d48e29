"""Report of a sweep: what was tried, what each parameter is worth, and what the best trials trade."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from raylm.report import figures
from raylm.report.artefacts import finished, made_from, subtitle, timing
from raylm.report.page import Page, figure, label
from raylm.report.parallel import parallel, scatter
from raylm.storage import Manifest, Store

SHOWN, CURVES = 40, 6
"""Trials of the table, and of the plot of curves."""


def build(store: Store, related: dict[str, Store]) -> Page:
    """The page of a finished sweep."""
    manifest = finished(store)
    trials = store.read_table("data/trials.parquet").to_pylist()
    for row in trials:
        row["point"], row["measures"] = json.loads(row["point"]), json.loads(row["measures"])
    done = [row for row in trials if row["state"] == "finished"]
    names = [objective["metric"] for objective in manifest.figures["objectives"]]
    page = Page(f"Sweep: {manifest.config['stage']}", subtitle(store, manifest))
    page.section("Overview", "Best of many is chosen by the numbers below themselves, so the truth is a little worse.")
    page.tiles(_tiles(store, manifest, names))
    page.section("Best trial", "best.yaml beside this page is its whole config, for the verb of the stage.")
    best = manifest.figures["best"]["point"]
    page.table(("parameter", "value"), [(name, _short(value)) for name, value in best.items()])
    _add_front(page, manifest, done, names)
    _add_parameters(page, manifest, done, names)
    _add_curves(page, store, manifest, trials, names[0])
    _add_trials(page, trials, names, manifest)
    page.section("Made from")
    page.table(("what", "value"), made_from(manifest))
    return page


def _tiles(store: Store, manifest: Manifest, names: Sequence[str]) -> list[tuple[str, str, str]]:
    found, times = manifest.figures, timing(store)
    states = ", ".join(f"{found[state]} {state}" for state in ("finished", "stopped", "failed") if found[state])
    tiles = [("trials", str(found["trials"]), states)]
    tiles += [(f"best {label(name)}", f"{found['best'][name]:.4g}", f"trial {found['best_trial']}") for name in names]
    if len(names) > 1:
        corner = ", ".join(f"{label(name)} {value:.3g}" for name, value in found["reference"].items())
        tiles += [("front", str(len(found["front"])), "trials that none beats")]
        tiles += [("hypervolume", f"{found['hypervolume']:.4g}", f"from {corner}")]
    if times.get("seconds"):
        rate = 3600 * found["trials"] / times["seconds"]
        tiles.append(("trials an hour", f"{rate:.0f}", f"{times['at_once']} at once"))
    search, scheduler = manifest.config["search"]["kind"], manifest.config["scheduler"]["kind"]
    return [*tiles, ("search", search, f"scheduler {scheduler}, seed {manifest.config['seed']}")]


def _add_front(page: Page, manifest: Manifest, done: list[dict[str, Any]], names: Sequence[str]) -> None:
    if len(names) < 2:
        return
    page.section(
        "Front",
        "Trials on the front are beaten by no other in all objectives at once; best is the one nearest to the best of "
        "each, scaled to the front's span.",
    )
    modes = {item["metric"]: item["mode"] for item in manifest.figures["objectives"]}
    plots = []
    for name in names[1:]:
        groups = {
            kind: ([row["measures"][names[0]] for row in rows], [row["measures"][name] for row in rows])
            for kind, rows in (
                ("other trials", [row for row in done if not row["on_front"]]),
                ("front", [row for row in done if row["on_front"]]),
                ("best", [row for row in done if row["number"] == manifest.figures["best_trial"]]),
            )
            if rows
        }
        better = {"min": "less", "max": "more"}
        x, y = (f"{label(each)} ({better[modes[each]]} is better)" for each in (names[0], name))
        plots.append(figure(scatter(groups, title=f"{label(names[0])} and {label(name)}", x=x, y=y, joined="front")))
    page.grid(plots)
    rows = sorted((row for row in done if row["on_front"]), key=lambda row: row["measures"][names[0]])
    page.table(
        ("trial", *map(label, names), "parameters"),
        [(row["number"], *(f"{row['measures'][name]:.4g}" for name in names), _point(row["point"])) for row in rows],
    )


def _add_parameters(page: Page, manifest: Manifest, done: list[dict[str, Any]], names: Sequence[str]) -> None:
    space = manifest.config["space"]
    log = [name for name in space if space[name]["loguniform"]]
    modes = {item["metric"]: item["mode"] for item in manifest.figures["objectives"]}
    page.section(
        "Parameters",
        "A line is a finished trial; the best by the plot's objective are orange, the worst grey. Importance is the "
        "share of an objective's variance that a parameter explains.",
    )
    for name in names:
        values = np.array([row["measures"][name] for row in done])
        ranks = np.argsort(np.argsort(-values if modes[name] == "max" else values)) / max(1, len(values) - 1)
        rows = [{**row["point"], name: row["measures"][name]} for row in done]
        page.figure(parallel(rows, [*space, name], (1 - ranks).tolist(), title=f"Trials by {label(name)}", log=log))
    bars = [
        figure(figures.barh(shares, title=f"Importance for {label(name)}", x="share of variance"))
        for name, shares in manifest.figures["importances"].items()
        if shares
    ]
    if bars:
        page.grid(bars)
    else:
        page.text("Too few finished trials, or too equal ones, for importances.")
    conditional = [name for name in space if any(name not in row["point"] for row in done)]
    if conditional and bars:
        page.text(f"Without an importance, as not every trial has them: {', '.join(conditional)}.")


def _add_curves(page: Page, store: Store, manifest: Manifest, trials: list[dict[str, Any]], name: str) -> None:
    sign = -1.0 if manifest.figures["objectives"][0]["mode"] == "max" else 1.0
    reports: dict[int, tuple[list[float], list[float]]] = {}
    for row in store.read_table("data/reports.parquet").to_pylist():
        measures = json.loads(row["measures"])
        if name in measures:
            xs, ys = reports.setdefault(row["number"], ([], []))
            xs.append(row["percent"])
            ys.append(measures[name])
    if not any(len(xs) > 1 for xs, _ in reports.values()):
        return
    ordered = sorted(reports, key=lambda number: sign * reports[number][1][-1])
    strong = ordered[:CURVES]
    series = {f"trial {number}": reports[number] for number in [*ordered[CURVES:], *strong]}
    page.section("Curves", f"The {len(strong)} best trials in colour; stopped ones end early.")
    faint = [f"trial {number}" for number in ordered[CURVES:]]
    page.figure(figures.lines(
        series, title=f"{label(name)} of trials", x="percent of the steps", y=label(name), faint=faint,
        unnamed=faint,
    ))  # fmt: skip


def _add_trials(page: Page, trials: list[dict[str, Any]], names: Sequence[str], manifest: Manifest) -> None:
    sign = -1.0 if manifest.figures["objectives"][0]["mode"] == "max" else 1.0
    order = sorted(
        trials, key=lambda row: (row["state"] != "finished", sign * row["measures"].get(names[0], np.inf * sign))
    )
    left = f", the first {SHOWN} of {len(trials)}" if len(trials) > SHOWN else ""
    page.section("Trials", f"Finished ones first, by {label(names[0])}{left}; all are in data/trials.parquet.")
    page.table(
        ("trial", "state", *map(label, names), "percent", "seconds", "parameters"),
        [
            (row["number"], row["state"], *(f"{row['measures'].get(name, np.nan):.4g}" for name in names),
             f"{row['percent']:.0f}", f"{row['seconds']:.0f}", _point(row["point"]))
            for row in order[:SHOWN]
        ],
    )  # fmt: skip
    errors = [(row["number"], row["error"]) for row in trials if row["error"]]
    if errors:
        page.section("Failed trials")
        page.table(("trial", "error"), errors)


def _point(point: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in point.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
