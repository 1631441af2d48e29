"""What the reports of reward models share: figures of pairs, calibration, dimensions, bad cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raylm.report import figures
from raylm.report.page import Page, block, figure
from raylm.storage import Store

CASES = 4
"""Bad cases of a dimension that are shown."""


def number(value: float | None, form: str = ".3f") -> str:
    """A figure, or nothing where there is none."""
    return "" if value is None or math.isnan(value) else format(value, form)


def tiles(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Headline figures of scored pairs."""
    if not found.get("pairs"):
        return [("pairs", "0", "nothing to rank")]
    matched = f"{found['length_matched_pairs']:,} pairs of like length"
    return [
        ("pair accuracy", number(found["pair_accuracy"]), f"{found['pairs']:,} pairs"),
        ("length-matched", number(found["length_matched_accuracy"]) or "none", matched),
        ("longer wins", number(found["longer_wins"]), "share of pairs; 0.5 is no length bias"),
        ("calibration error", number(found["ece"]), "mean distance of confidence and accuracy"),
        ("nats a pair", number(found["pair_nll"]), f"a coin has {0.693:.3f}"),
    ]


def add_dimensions(page: Page, found: Mapping[str, Any]) -> None:
    """What every branch does to the ranking, and how it agrees with ratings."""
    page.section(
        "Dimensions",
        "Alone: pair accuracy of the branch's share by itself. Share: mean size of what it does to the difference of "
        "a pair's scores, in log-odds. Agreement is with the ratings of its own dimension.",
    )
    agreed = found.get("agreement", {})
    rows = []
    shares = {name: value for name, value in found.get("mean_share", {}).items() if value is not None}
    shares = dict(sorted(shares.items(), key=lambda item: -item[1]))
    for name in shares:
        alone = found["branch_alone"][name]
        own = agreed.get(name, {})
        texts = f"{own['texts']:,.0f}" if own else ""
        correlations = [number(own.get(key)) for key in ("spearman", "kendall")]
        rows.append((name, number(alone), number(found["mean_share"][name]), *correlations, texts))
    page.table(("branch", "alone", "share", "Spearman", "Kendall", "rated texts"), rows)
    if shares:
        page.figure(figures.barh(shares, title="What moves the scores", x="mean size of a branch's share, log-odds"))


def calibration(store: Store) -> Any:
    """The calibration curve as a figure."""
    bins = store.read_table("data/calibration.parquet").to_pydict()
    curves = {
        "reward model": (bins["confidence"], bins["accuracy"]),
        "as sure as right": ([0.5, 1.0], [0.5, 1.0]),
    }
    return figure(
        figures.lines(
            curves, title="Calibration", x="probability of the higher score", y="pairs it is right on", limits=(0, 1)
        )
    )


def add_bad_cases(page: Page, groups: Sequence[Mapping[str, Any]]) -> None:
    """Pairs ranked wrongly, by the branch that did most to it."""
    page.section(
        "Bad cases",
        "Pairs whose rejected response scores higher, by the branch whose share speaks most for the rejected one. A "
        "branch with many is the one to retrain first.",
    )
    if not groups:
        page.callout("No pair is ranked wrongly.", "good")
        return
    page.bars({group["dimension"]: group["pairs"] for group in groups})
    for group in groups:
        for case in group["examples"][:CASES]:
            shares = ", ".join(f"{name} {share:+.2f}" for name, share in _largest(case["shares"]))
            parts = [
                block("response", side, kind, None, f"{case[side]}")
                for side, kind in (("chosen", "correct"), ("rejected", "wrong"))
            ]
            parts = [block("response", "prompt", "", None, case["prompt"]), *parts]
            page.example(f"{group['dimension']}: {case['difference']:+.2f}", shares, parts)


def _largest(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda item: -abs(item[1]))[:5]
