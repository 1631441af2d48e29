"""From causes to a repair plan that the fine-tune takes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from raylm.ilp.config import RepairConfig
from raylm.ilp.measure import Diagnosis
from raylm.ilp.neighbours import clusters
from raylm.ilp.neighbours import touched as touched_by
from raylm.train.repair import DocumentPlan, ExtraPlan, RepairPlan, ReplayPlan


def build(found: Diagnosis, config: RepairConfig, digest: str, documents: str = "") -> RepairPlan:
    """The plan for everything that a diagnosis has attributed.

    Args:
        found: the diagnosis.
        config: what each cause gets.
        digest: of the samples.
        documents: file of documents for missing prerequisites; empty where there are none.
    """
    of = {name: each.cause for name, each in found.causes.items()}
    contradicted = {name for name, cause in of.items() if cause == "inconsistency"}
    wrong = wrong_ones(found, config)
    touched = touched_by(found.everyone, found.pairs, contradicted)
    drop = tuple(sorted({wrong[name] for name in touched if name in wrong}))
    separate = [pair for pair in _opposed(found) if set(pair) <= touched and not set(pair) & set(drop)]
    forgotten = [name for name, cause in of.items() if cause == "forgotten"]
    weighty = [name for name, cause in of.items() if cause in ("conflict", "underfit") and name not in drop]
    underfit = any(cause == "underfit" for cause in of.values())
    return RepairPlan(
        samples=digest,
        drop=drop,
        separate=tuple(separate),
        upweight=_weights(weighty, len(found.everyone) - len(drop), config),
        shuffle=bool(forgotten) and config.shuffle,
        replay=ReplayPlan(ids=tuple(forgotten), every=config.replay_every)
        if forgotten and not config.shuffle
        else None,
        extra=ExtraPlan(epochs=config.extra_epochs, general=_absolute(config.general), max_rise=config.max_rise)
        if underfit and config.extra_epochs
        else None,
        documents=DocumentPlan(
            path=documents,
            share=config.document_share,
            general=_absolute(config.general_text),
            epochs=config.document_epochs,
        )
        if documents
        else None,
        reasons={name: _reason(name, of.get(name, ""), wrong) for name in {*of, *drop}},
    )


def _weights(names: Sequence[str], total: int, config: RepairConfig) -> dict[str, float]:
    """A weight for each name: `upweight`, or what leaves the others `others_keep` of their share of the steps.

    With a share f of the samples at weight w, the others' share is 1 / (1 + f (w - 1)) of that without weights.
    """
    if not names:
        return {}
    most = 1 + (1 / config.others_keep - 1) * total / len(names)
    weight = min(config.upweight, most)
    return dict.fromkeys(names, round(weight, 3)) if weight > 1 else {}


def wrong_ones(found: Diagnosis, config: RepairConfig) -> dict[str, str]:
    """For each sample of a contradiction, the one of it to drop; none where nothing says which is wrong.

    The answer that most samples of the same question give is kept; among equally frequent ones that with the lower
    loss under the base model, if it is lower by enough (I).
    """
    chosen: dict[str, str] = {}
    for cluster in clusters(found.pairs):
        items = [found.everyone[place] for place in cluster]
        votes = Counter(item.normal for item in items)
        if len(votes) < 2:
            continue
        ranked = sorted(votes, key=lambda answer: (-votes[answer], _loss(found, items, answer)))
        first, second = ranked[0], ranked[1]
        gap = _loss(found, items, second) - _loss(found, items, first)
        if votes[first] == votes[second] and not gap >= config.separate_below:
            continue
        losers = [item.id for item in items if item.normal != first]
        for item in items:
            chosen[item.id] = item.id if item.normal != first else losers[0]
        chosen |= {name: name for name in losers}
    return chosen


def _loss(found: Diagnosis, items: Sequence[Any], answer: str) -> float:
    """Mean loss of an answer under the base model, over the samples of a cluster that give it."""
    losses = [
        found.base_scores[item.id]["nll"] for item in items if item.normal == answer and item.id in found.base_scores
    ]
    return sum(losses) / len(losses) if losses else float("inf")


def _opposed(found: Diagnosis) -> list[tuple[str, str]]:
    return [(found.everyone[pair.left].id, found.everyone[pair.right].id) for pair in found.pairs if not pair.agrees]


def _reason(name: str, cause: str, wrong: Mapping[str, str]) -> str:
    if wrong.get(name) == name and cause in ("", "inconsistency"):
        return "inconsistency: contradicts other samples, and is the one dropped"
    return cause


def _absolute(path: str) -> str:
    """A path that means the same from the plan's directory as from here."""
    return path if not path or "://" in path else os.path.abspath(path)
