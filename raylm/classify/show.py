"""Soft labels to look at, in the terminal."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raylm.classify.config import ClassifierConfig
from raylm.classify.data import load
from raylm.classify.run import NEEDS_VECTORS
from raylm.errors import UserError
from raylm.softlabels import distributions, targets

LABELS, TEXTS, SHOWN = 20, 12, 4
"""Labels and texts that are listed, and labels of a text."""


def show(config: ClassifierConfig) -> None:
    """Print the keywords of labels and the soft labels of a few training texts.

    Raises:
        UserError: as `load`; or the soft labels need an encoder's vectors, or there are none.
    """
    if config.soft.kind in ("none", "distillation", *NEEDS_VECTORS):
        raise UserError(f"soft.kind={config.soft.kind}: nothing to show; choose keyword, centroid, uniform or prior")
    data = load(config)
    pairs = [(part.texts, part.gold) for part in (data.train, data.dev)]
    made = targets.make(config.soft, pairs[0], pairs[1], len(data.labels), seed=config.seed)
    console = Console(highlight=False)
    entropy = float(distributions.entropy(made.rows).mean())
    console.print(
        f"{len(data.train)} texts, {len(data.labels)} labels; temperature {made.temperature}, mean entropy "
        f"{entropy:.3f} nats of at most {np.log(len(data.labels)):.3f}"
    )
    if made.table is not None:
        words = Table("label", "texts", "keywords and their weights", title="Keywords")
        for label, name in enumerate(data.labels[:LABELS]):
            found = ", ".join(f"{word} {weight:.2f}" for word, weight in made.table.keywords(label, 8))
            words.add_row(escape(name), str(int((data.train.gold == label).sum())), escape(found))
        console.print(words)
        if len(data.labels) > LABELS:
            console.print(f"... and {len(data.labels) - LABELS} more labels")
    texts = Table("text", "gold", "soft label", title="Soft labels")
    for place in np.linspace(0, len(data.train) - 1, min(TEXTS, len(data.train))).astype(int):
        row = made.rows[place]
        top = ", ".join(f"{data.labels[label]} {row[label]:.2f}" for label in np.argsort(-row)[:SHOWN])
        texts.add_row(escape(data.train.texts[place][:60]), escape(data.labels[data.train.gold[place]]), escape(top))
    console.print(texts)
