"""Report of a classifier: how right it is, how sure, and where it errs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from raylm.report import figures
from raylm.report.artefacts import finished, made_from, subtitle
from raylm.report.page import Page, figure
from raylm.storage import Manifest, Store

_FIGURES = {
    "accuracy": "accuracy", "macro_f1": "macro-F1", "tail_recall": "tail recall", "ece": "calibration error",
    "nll": "nats a text",
}  # fmt: skip
WORST, CONFUSED = 25, 20
"""Labels and confusions that are listed."""


def build(store: Store, related: dict[str, Store]) -> Page:
    """The page of a finished train-classifier artefact."""
    manifest = finished(store)
    rows = store.read_table("data/predictions.parquet").to_pylist()
    page = Page("Classify: texts and labels", subtitle(store, manifest))
    page.section("Overview", "On the test texts, or on dev where there is no test file.")
    page.tiles(_tiles(manifest))
    _add_training(page, store)
    _add_labels(page, rows)
    page.section("Surest errors", "Texts whose wrong label had the highest probability: some may be labelled wrongly.")
    wrong = sorted((row for row in rows if row["gold"] != row["predicted"]), key=lambda row: -row["confidence"])
    page.table(
        ("text id", "gold", "predicted", "its probability", "gold's probability"),
        [
            (row["id"], row["gold"], row["predicted"], f"{row['confidence']:.2f}", f"{row['gold_probability']:.2f}")
            for row in wrong[:CONFUSED]
        ],
    )
    page.section("Made from")
    page.table(("what", "value"), made_from(manifest))
    return page


def _tiles(manifest: Manifest) -> list[tuple[str, str, str]]:
    found = manifest.figures
    tiles = [(name, f"{found[key]:.3f}", "") for key, name in _FIGURES.items()]
    counts = found["texts"]
    tiles.append(("texts", f"{counts['train']:,}", f"{counts['dev']:,} dev, {counts['evaluated']:,} evaluated"))
    soft = manifest.config["soft"]
    note = f"{soft['mode']}, alpha {soft['alpha']}" if soft["kind"] != "none" else "gold labels alone"
    return [*tiles, ("soft labels", soft["kind"], note)]


def _add_training(page: Page, store: Store) -> None:
    steps, looks = (store.read_table(f"data/{name}.parquet").to_pydict() for name in ("steps", "looks"))
    bins = store.read_table("data/reliability.parquet").to_pydict()
    losses = figures.smooth(steps["loss"], min(25, max(1, len(steps["loss"]) // 10)))
    curves = {name: (looks["epoch"], looks[key]) for key, name in (("accuracy", "accuracy"), ("macro_f1", "macro-F1"))}
    sure = {"classifier": (bins["confidence"], bins["accuracy"]), "as sure as right": ([0.0, 1.0], [0.0, 1.0])}
    page.section("Training and calibration")
    page.grid([
        figure(figures.lines({"loss": (steps["step"], losses)}, title="Loss", x="optimizer step", y="nats a text")),
        figure(figures.lines(curves, title="Dev texts", x="epoch", y="share", limits=(0, 1))),
        figure(figures.lines(sure, title="Calibration", x="confidence", y="accuracy", limits=(0, 1))),
    ])  # fmt: skip


def _add_labels(page: Page, rows: list[dict[str, Any]]) -> None:
    gold, predicted = Counter(row["gold"] for row in rows), Counter(row["predicted"] for row in rows)
    right = Counter(row["gold"] for row in rows if row["gold"] == row["predicted"])
    recalls = sorted(gold, key=lambda name: (right[name] / gold[name], name))
    page.section("Labels", f"The {min(WORST, len(recalls))} labels with the lowest recall, of {len(recalls)}.")
    table = []
    for name in recalls[:WORST]:
        precision = f"{right[name] / predicted[name]:.2f}" if predicted[name] else "-"
        table.append((name, gold[name], f"{right[name] / gold[name]:.2f}", precision))
    page.table(("label", "texts", "recall", "precision"), table)
    confused = Counter((row["gold"], row["predicted"]) for row in rows if row["gold"] != row["predicted"])
    page.section("Confusions")
    page.table(("gold", "predicted", "texts"), [(*pair, count) for pair, count in confused.most_common(CONFUSED)])
