"""Signals of samples, out of what was asked, the neighbours and the log."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raylm.ilp.belief import Stakes, stakes
from raylm.ilp.causes import Signals
from raylm.ilp.config import DiagnoseConfig
from raylm.ilp.items import Item, normal_form
from raylm.ilp.log import Log
from raylm.ilp.measure import Probed, Rows
from raylm.ilp.neighbours import Pair
from raylm.ilp.scoring import divergence_from

ENOUGH = 20
"""Learned samples from which on quartiles of them mean something."""


class SignalMaker:
    """Makes the signals of samples."""

    def __init__(
        self,
        config: DiagnoseConfig,
        everyone: Sequence[Item],
        pairs: Sequence[Pair],
        nearest: np.ndarray,
        *,
        probed: Mapping[str, Probed],
        before: Rows,
        log: Log | None,
    ) -> None:
        """Take what is known before the base model is asked for responses.

        Args:
            config: of the stage.
            everyone: all samples.
            pairs: that ask the same.
            nearest: each sample's similarity to its nearest question, [samples].
            probed: samples that were looked at.
            before: the base model's scores of those that are not learned, and of learned ones to measure them by.
            log: of the training.
        """
        self.config, self.everyone, self.nearest, self.log = config, everyone, nearest, log
        self.probed, self.before = probed, before
        learned = [
            before[name]["familiarity"] for name, each in probed.items() if each.verdict == "learned" and name in before
        ]
        self.quartiles = tuple(np.quantile(learned, (0.25, 0.75))) if len(learned) >= ENOUGH else ()
        self.place = {item.id: place for place, item in enumerate(everyone)}
        self.against: dict[int, list[tuple[float, int]]] = {}
        for pair in pairs:
            if not pair.agrees:
                self.against.setdefault(pair.left, []).append((pair.similarity, pair.right))
                self.against.setdefault(pair.right, []).append((pair.similarity, pair.left))

    def stakes(self, item: Item) -> Stakes:
        """Which causes hang on what the base model answers to a sample that is not learned."""
        score = self.before[item.id]
        return stakes(self._unfamiliarity(score), bool(item.prerequisites), _divergence(score), self.config.rules)

    def of(self, items: Sequence[Item], believed: Mapping[str, Any]) -> dict[str, Signals]:
        """Signals of some items.

        Args:
            items: the samples, none of them learned.
            believed: the base model's sampled responses by sample, and the greedy ones to prerequisites by
                `SAMPLE/NUMBER`.
        """
        return {
            item.id: Signals(
                id=item.id,
                **self._neighbours(item, self.probed[item.id].response),
                **_belief(believed.get(item.id, ())),
                **self._knowledge(item, believed),
                **self._path(item),
            )
            for item in items
        }

    def _unfamiliarity(self, score: Mapping[str, Any]) -> float | None:
        if not self.quartiles:
            return None
        lower, upper = self.quartiles
        return float((lower - score["familiarity"]) / max(upper - lower, 1e-6))

    def _knowledge(self, item: Item, believed: Mapping[str, Any]) -> dict[str, Any]:
        """How familiar the question is to the base model, what it knows of prerequisites, and how far it is off."""
        score = self.before[item.id]
        answers = [believed.get(f"{item.id}/{number}") for number in range(len(item.prerequisites))]
        needed = [bool(rows[0]["right"]) for rows in answers if rows]
        return {
            "base_familiarity": score["familiarity"],
            "unfamiliarity": self._unfamiliarity(score),
            "prerequisite_accuracy": sum(needed) / len(needed) if needed else None,
            "divergence": _divergence(score),
        }

    def _neighbours(self, item: Item, response: str) -> dict[str, Any]:
        place = self.place[item.id]
        against = sorted(self.against.get(place, ()), reverse=True)
        said = normal_form(response, item.check)
        return {
            "nearest": float(self.nearest[place]),
            "contradiction": (against[0][0] if against else 0.0) if item.normal else None,
            "opponents": tuple(self.everyone[other].id for _, other in against),
            "echoes": bool(said) and any(self.everyone[other].normal == said for _, other in against),
        }

    def _path(self, item: Item) -> dict[str, Any]:
        path = self.log.paths.get(item.id) if self.log is not None else None
        if path is None or self.log is None:
            return {}
        return {
            "exposures": len(path.steps),
            "looks_right": path.looks_right,
            "first_seen": path.steps[0] / self.log.steps,
            "last_seen": path.steps[-1] / self.log.steps,
            "falling": path.falling,
            "alternation": path.alternation,
            "confidence": path.confidence,
            "variability": path.variability,
        }


def modal(normals: Sequence[str]) -> tuple[str, float]:
    """The most frequent of some answers and its share; the first of equally frequent ones."""
    counts = Counter(normals)
    answer, count = counts.most_common(1)[0] if counts else ("", 0)
    return answer, count / max(1, len(normals))


def _belief(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the base model says when sampled, how often, and whether that is right."""
    samples = sorted(rows, key=lambda row: row["place"])
    answer, share = modal([row["normal"] for row in samples])
    verdicts = [row["right"] for row in samples if row["right"] is not None]
    agreeing = [row["right"] for row in samples if row["normal"] == answer]
    return {
        "base_right": sum(verdicts) / len(verdicts) if verdicts else None,
        "base_answer": answer,
        "base_confidence": share if samples else None,
        "base_wrong": not any(agreeing) if agreeing and None not in agreeing else None,
    }


def _divergence(score: Mapping[str, Any]) -> float:
    """Of the base model from the answer, at the token where it is largest."""
    return divergence_from(math.exp(score["least"]))
