"""From items to verdicts and signals: which questions are put to which model, in what order.

The expensive questions are asked of suspects alone. A sample's answer that has more than half of the tuned model's
probability wins any multiple choice, and one whose every token is the likeliest is what greedy decoding writes: both
are known from the one pass that P3 takes anyway.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raylm.ilp import neighbours
from raylm.ilp.causes import Attribution, Signals, Verdict, attribute, verdict
from raylm.ilp.config import DiagnoseConfig
from raylm.ilp.items import Item, chance_floor, choices, distractors
from raylm.ilp.log import Log
from raylm.ilp.neighbours import Pair
from raylm.ilp.scoring import divergence_from
from raylm.ilp.workers import AnswerWorker, ScoreWorker, lengths, modal, packed
from raylm.storage import Store
from raylm.units import Unit, unit_key

Ask = Callable[[str, list[Unit], Any, dict[str, Any]], list[dict[str, Any]]]
"""(label, units, worker class, its arguments) to the rows of all units."""
HALF = math.log(0.5)
_NEAR = 50
"""Nearest questions whose answers may be distractors."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What the probes say of one sample."""

    id: str
    choice: float
    """P1: share of right choices."""
    options: int
    """Options of each choice; 1 where there is no other answer to choose."""
    written: bool | None
    """P2; None where no check could tell."""
    response: str
    """The greedy response."""
    finished: bool
    """Whether it ended by itself."""
    reason: str
    """Why P2 is None."""
    nll: float
    """P3: nats a token of the answer under the tuned model."""
    least: float
    """P3: log-probability of its least likely token."""
    base_nll: float
    improved: bool
    """P3: whether tuning lowered the loss by more than the margin."""
    shortcut: bool
    """Whether P1 and P2 were known without asking."""
    verdict: Verdict


@dataclass(slots=True)
class Diagnosis:
    """All that a diagnosis found."""

    items: list[Item]
    probed: dict[str, Probed]
    signals: dict[str, Signals]
    """Of samples that are not learned."""
    causes: dict[str, Attribution]
    pairs: list[Pair]
    """Samples that ask the same question, by their places among `everyone`."""
    everyone: list[Item]
    """All samples, those that a screen left out included."""
    floor: float
    """Share of samples that P1 would call unlearned if all answers were guessed."""
    longest: float
    """Share of multiple choices in which the right answer is longer than every other."""
    base_scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    def ids(self, *kinds: Verdict) -> list[str]:
        """Samples with one of some verdicts."""
        return [item.id for item in self.items if self.probed[item.id].verdict in kinds]


def here(store: Store) -> Ask:
    """Ask in this process, without Ray."""

    def ask(label: str, units: list[Unit], worker: Any, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        del label
        return asyncio.run(_run(units, worker(**arguments), store))

    return ask


async def _run(units: list[Unit], worker: Any, store: Store) -> list[dict[str, Any]]:
    if not units:
        return []
    await worker.start()
    try:
        return [row for unit in units for row in (await worker.run(unit, store))[0].to_pylist()]
    finally:
        await worker.close()


def diagnose(
    everyone: Sequence[Item], items: Sequence[Item], config: DiagnoseConfig, ask: Ask, *, tuned: str, base: str,
    encode: Callable[[list[str]], np.ndarray], log: Log | None = None,
) -> Diagnosis:  # fmt: skip
    """Probe items, and attribute those that are not learned.

    Args:
        everyone: all samples of the training.
        items: those to look at.
        config: of the stage.
        ask: runs workers; `here` does so in this process.
        tuned: directory of the tuned model.
        base: directory of the base model.
        encode: vectors of questions, of length 1.
        log: of the training.
    """
    after, before = (scores(items, config, ask, path, name) for path, name in ((tuned, "tuned"), (base, "base")))
    suspects = [item for item in items if not (config.probe.shortcuts and _certain(after[item.id]))]
    vectors = encode([item.question for item in everyone])
    wrong = _distractors(suspects, everyone, vectors, config, tuned)
    probed, longest = _probe(items, suspects, wrong, config, ask, tuned=tuned, after=after, before=before)
    failed = [item for item in items if probed[item.id].verdict != "learned"]
    pairs, nearest = neighbours.same_questions(everyone, vectors, config.rules)
    believed = _believed(failed, config, ask, base)
    signals = _Signals(config, everyone, pairs, nearest, log, probed, before, believed).of(failed)
    smallest = max((each.options for each in probed.values()), default=config.probe.options)
    return Diagnosis(
        items=list(items),
        probed=probed,
        signals=signals,
        causes={name: attribute(each, config.rules) for name, each in signals.items()},
        pairs=pairs,
        everyone=list(everyone),
        floor=chance_floor(smallest, config.probe.evaluations, config.probe.unlearned_below),
        longest=longest,
        base_scores=before,
    )


def units(label: str, items: Sequence[Item], size: int, extra: Mapping[str, Any] | None = None) -> list[Unit]:
    """Units of `size` items each; `extra` maps an item's id to its options."""
    found = []
    for start in range(0, len(items), size):
        part = items[start : start + size]
        payload: dict[str, Any] = {"items": [packed(item) for item in part]}
        if extra is not None:
            payload["options"] = [extra[item.id] for item in part]
        found.append(Unit(unit_key("diagnose", label, *(item.id for item in part)), payload))
    return found


def scores(
    items: Sequence[Item], config: DiagnoseConfig, ask: Ask, path: str, model: str, of: str = ""
) -> dict[str, dict[str, Any]]:
    """What a model makes of the items' own answers, by id: rows of `workers.SCORES`."""
    arguments = {"config": config, "path": path, "model": model}
    rows = ask(f"diagnose: {of}{model} scores", units(f"{of}score-{model}", items, config.unit), ScoreWorker, arguments)
    return {row["id"]: row for row in rows}


def _certain(score: Mapping[str, Any]) -> bool:
    return bool(score["greedy"]) and score["logprob"] > HALF


def _distractors(
    suspects: Sequence[Item], everyone: Sequence[Item], vectors: np.ndarray, config: DiagnoseConfig, tuned: str
) -> dict[str, list[str]]:
    size = lengths([item.answer for item in everyone], tuned, config.trust_remote_code)
    place = {item.id: index for index, item in enumerate(everyone)}
    near = neighbours.nearest_places(vectors, [place[item.id] for item in suspects], _NEAR)
    by_id = {item.id: row for item, row in zip(suspects, near, strict=True)}
    return distractors(suspects, everyone, by_id, size, config)


def _probe(
    items: Sequence[Item], suspects: Sequence[Item], wrong: Mapping[str, list[str]], config: DiagnoseConfig, ask: Ask,
    *, tuned: str, after: Mapping[str, dict[str, Any]], before: Mapping[str, dict[str, Any]],
) -> tuple[dict[str, Probed], float]:  # fmt: skip
    texts = [text for item in suspects for text in (item.answer, *wrong[item.id])]
    size = lengths(texts, tuned, config.trust_remote_code)
    arguments = {"config": config, "path": tuned, "model": "tuned"}
    asked = [item for item in suspects if wrong[item.id]]
    rows = ask("diagnose: choices", units("options", asked, config.unit, wrong), ScoreWorker, arguments)
    options = {row["id"]: row["logprobs"] for row in rows}
    writers = [item for item in suspects if not (config.probe.shortcuts and after[item.id]["greedy"])]
    responses = ask("diagnose: responses", units("answers", writers, config.unit), AnswerWorker,
                    {"config": config, "path": tuned, "samples": 0})  # fmt: skip
    written = {row["id"]: row for row in responses}
    found, drawn, longest = {}, 0, 0
    doubtful = {item.id for item in suspects}
    for item in items:
        draws = choices(item, len(wrong[item.id]), config) if item.id in doubtful else []
        for draw in draws:
            drawn += bool(draw)
            longest += bool(draw) and all(size[item.answer] > size[wrong[item.id][place]] for place in draw)
        found[item.id] = _probed(item, draws, options.get(item.id, []), written.get(item.id), config,
                                 score=after[item.id], before=before[item.id], certain=item.id not in doubtful)  # fmt: skip
    return found, longest / max(1, drawn)


def _probed(
    item: Item, draws: Sequence[Sequence[int]], options: Sequence[float], written: Mapping[str, Any] | None,
    config: DiagnoseConfig, *, score: Mapping[str, Any], before: Mapping[str, Any], certain: bool,
) -> Probed:  # fmt: skip
    # Equal likelihoods count as wrong: they do not tell the right answer from another.
    right = [all(score["logprob"] > options[place] for place in draw) for draw in draws]
    choice = sum(right) / len(right) if right else 1.0
    by_hand = written is not None
    wrote = written["right"] if written is not None else True
    return Probed(
        id=item.id,
        choice=choice,
        options=1 + len(draws[0]) if draws else config.probe.options,
        written=wrote,
        response=written["response"] if written is not None else item.answer,
        finished=written["finished"] if written is not None else True,
        reason=written["reason"] if written is not None else "",
        nll=score["nll"],
        least=score["least"],
        base_nll=before["nll"],
        improved=score["nll"] < before["nll"] - config.probe.nll_margin,
        shortcut=certain or not by_hand,
        verdict=verdict(float(choice >= config.probe.unlearned_below), wrote is not False),
    )


def _believed(failed: Sequence[Item], config: DiagnoseConfig, ask: Ask, base: str) -> dict[str, list[dict[str, Any]]]:
    """The base model's responses to questions, and to their prerequisites as `ID/N`."""
    arguments = {"config": config, "path": base, "samples": config.ask_base.samples}
    rows = ask("diagnose: the base model", units("base", failed, config.unit), AnswerWorker, arguments)
    needed = [
        Item(f"{item.id}/{number}", [{"role": "user", "content": question}], answer, "answer", "", "prerequisite")
        for item in failed
        for number, (question, answer) in enumerate(item.prerequisites)
    ]
    needed = [Item(each.id, each.messages, each.answer, "exact", _normal(each.answer), each.task) for each in needed]
    rows += ask(
        "diagnose: prerequisites", units("needed", needed, config.unit), AnswerWorker, arguments | {"samples": 0}
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["id"], []).append(row)
    return found


def _normal(answer: str) -> str:
    from raylm.ilp.items import normal_form

    return normal_form(answer, "exact")


class _Signals:
    """Signals of samples, out of what was asked."""

    def __init__(
        self, config: DiagnoseConfig, everyone: Sequence[Item], pairs: Sequence[Pair], nearest: np.ndarray,
        log: Log | None, probed: Mapping[str, Probed], before: Mapping[str, dict[str, Any]],
        believed: Mapping[str, list[dict[str, Any]]],
    ) -> None:  # fmt: skip
        self.config, self.log, self.probed, self.before, self.believed = config, log, probed, before, believed
        self.everyone = everyone
        self.place = {item.id: place for place, item in enumerate(everyone)}
        self.nearest = nearest
        self.against: dict[int, list[tuple[float, int]]] = {}
        for pair in pairs:
            if not pair.agrees:
                self.against.setdefault(pair.left, []).append((pair.similarity, pair.right))
                self.against.setdefault(pair.right, []).append((pair.similarity, pair.left))
        learned = [before[name]["familiarity"] for name, each in probed.items() if each.verdict == "learned"]
        self.familiar = np.sort(np.asarray(learned, dtype=float))

    def of(self, items: Sequence[Item]) -> dict[str, Signals]:
        return {
            item.id: Signals(id=item.id, **self._neighbours(item), **self._base(item), **self._log(item))
            for item in items
        }

    def _neighbours(self, item: Item) -> dict[str, Any]:
        place = self.place[item.id]
        against = sorted(self.against.get(place, ()), reverse=True)
        said = _normal(self.probed[item.id].response) if item.check == "exact" else ""
        return {
            "nearest": float(self.nearest[place]),
            "contradiction": (against[0][0] if against else 0.0) if item.normal else None,
            "opponents": tuple(self.everyone[other].id for _, other in against),
            "echoes": any(self.everyone[other].normal == said for _, other in against),
        }

    def _base(self, item: Item) -> dict[str, Any]:
        rows = sorted(self.believed.get(item.id, ()), key=lambda row: row["place"])
        samples = rows[1:]
        answer, share = modal([row["normal"] for row in samples])
        verdicts = [row["right"] for row in samples if row["right"] is not None]
        agreeing = [row["right"] for row in samples if row["normal"] == answer]
        needed = [self.believed[key][0]["right"] for number in range(len(item.prerequisites))
                  if (key := f"{item.id}/{number}") in self.believed]  # fmt: skip
        score = self.before[item.id]
        enough = len(self.familiar) >= 20  # a quantile of fewer is noise
        rank = float(np.searchsorted(self.familiar, score["familiarity"]) / len(self.familiar)) if enough else None
        return {
            "base_right": sum(verdicts) / len(verdicts) if verdicts else None,
            "base_answer": answer,
            "base_confidence": share if samples else None,
            "base_wrong": not any(agreeing) if agreeing and None not in agreeing else None,
            "base_familiarity": score["familiarity"],
            "familiarity_rank": rank,
            "prerequisite_accuracy": sum(map(bool, needed)) / len(needed) if needed else None,
            "divergence": divergence_from(math.exp(score["least"])),
        }

    def _log(self, item: Item) -> dict[str, Any]:
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
