"""From items to verdicts and causes: which questions are put to which model, in what order.

The expensive questions are asked of suspects alone. A sample's answer that has more than half of the tuned model's
probability wins any multiple choice, and one whose every token is the likeliest is what greedy decoding writes: both
are known from the one pass that P3 takes anyway.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylm.ilp import neighbours
from raylm.ilp.causes import Attribution, Signals, Verdict, attribute, verdict
from raylm.ilp.config import DiagnoseConfig
from raylm.ilp.items import Item, chance_floor, choices, distractors, normal_form
from raylm.ilp.log import Log
from raylm.ilp.neighbours import Pair
from raylm.ilp.workers import AnswerWorker, ScoreWorker, lengths, packed
from raylm.storage import Store
from raylm.units import Unit, unit_key

Ask = Callable[[str, list[Unit], Any, dict[str, Any]], list[dict[str, Any]]]
"""(label, units, worker class, its arguments) to the rows of all units."""
Encode = Callable[[list[str]], np.ndarray]
"""Texts to their vectors, of length 1, [texts, dimension]."""
Rows = Mapping[str, dict[str, Any]]
"""Sample to what was asked of it."""
HALF = math.log(0.5)
_NEAR = 50
"""Nearest questions whose answers may be distractors."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What the probes say of one sample."""

    id: str
    choice: float
    """P1: share of right choices; 1 where it is known to be at least the bound without asking."""
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
    """Whether P1 or P2 was known without asking."""
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a diagnosis draws on."""

    ask: Ask
    """Runs workers; `here` does so in this process."""
    tuned: str
    """Directory of the tuned model."""
    base: str
    """Directory of the base model."""
    encode: Encode
    """Of questions."""
    log: Log | None = None
    """Of the training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All that a diagnosis found."""

    everyone: list[Item]
    """All samples, those that a screen left out included."""
    items: list[Item]
    """Those that were looked at."""
    probed: dict[str, Probed]
    signals: dict[str, Signals]
    """Of samples that are not learned."""
    causes: dict[str, Attribution]
    pairs: list[Pair]
    """Samples that ask the same question, by their places among `everyone`."""
    floor: float
    """Share of samples that P1 would call unlearned if all answers were guessed."""
    longest: float
    """Share of multiple choices in which the right answer is longer than every other."""
    base_scores: Rows
    """Rows of `workers.SCORES` by the base model."""

    def ids(self, *kinds: Verdict) -> list[str]:
        """Samples with one of some verdicts."""
        return [item.id for item in self.items if self.probed[item.id].verdict in kinds]


def diagnose(everyone: Sequence[Item], items: Sequence[Item], config: DiagnoseConfig, sources: Sources) -> Diagnosis:
    """Probe items, and attribute those that are not learned; `everyone` are all samples of the training."""
    from raylm.ilp.signals import SignalMaker

    prober = _Prober(everyone, config, sources)
    after, before = (
        scores(items, config, sources.ask, path, model=model)
        for path, model in ((sources.tuned, "tuned"), (sources.base, "base"))
    )
    probed = prober.probe(items, after, before)
    failed = [item for item in items if probed[item.id].verdict != "learned"]
    pairs, nearest = neighbours.same_questions(everyone, prober.vectors, config.rules)
    maker = SignalMaker(config, everyone, pairs, nearest, log=sources.log)
    signals = maker.of(failed, probed, before, prober.believed(failed))
    return Diagnosis(
        everyone=list(everyone),
        items=list(items),
        probed=probed,
        signals=signals,
        causes={name: attribute(each, config.rules) for name, each in signals.items()},
        pairs=pairs,
        floor=chance_floor(config.probe.options, config.probe.evaluations, config.probe.unlearned_below),
        longest=prober.longest / max(1, prober.drawn),
        base_scores=before,
    )


def here(store: Store) -> Ask:
    """Ask in this process, without Ray."""

    async def run(units: list[Unit], worker: Any) -> list[dict[str, Any]]:
        await worker.start()
        try:
            return [row for unit in units for row in (await worker.run(unit, store))[0].to_pylist()]
        finally:
            await worker.close()

    def ask(label: str, units: list[Unit], worker: Any, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        del label
        return asyncio.run(run(units, worker(**arguments))) if units else []

    return ask


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
    items: Sequence[Item], config: DiagnoseConfig, ask: Ask, path: str, *, model: str, of: str = ""
) -> dict[str, dict[str, Any]]:
    """What the model at a path makes of the items' own answers, by id: rows of `workers.SCORES`."""
    arguments = {"config": config, "path": path, "model": model}
    rows = ask(f"diagnose: {of}{model} scores", units(f"{of}score-{model}", items, config.unit), ScoreWorker, arguments)
    return {row["id"]: row for row in rows}


class _Prober:
    """Asks the tuned model to choose and to write, and the base model what it believes."""

    def __init__(self, everyone: Sequence[Item], config: DiagnoseConfig, sources: Sources) -> None:
        self.everyone, self.config, self.sources = everyone, config, sources
        self.vectors = sources.encode([item.question for item in everyone])
        self.drawn = self.longest = 0

    def probe(self, items: Sequence[Item], after: Rows, before: Rows) -> dict[str, Probed]:
        """P1, P2 and the verdict of each item, given the scores of both models."""
        config, ask = self.config, self.sources.ask
        suspects = [item for item in items if not (config.probe.shortcuts and _certain(after[item.id]))]
        wrong = self._distractors(suspects)
        asked = [item for item in suspects if wrong[item.id]]
        arguments = {"config": config, "path": self.sources.tuned, "model": "tuned"}
        rows = ask("diagnose: choices", units("options", asked, config.unit, wrong), ScoreWorker, arguments)
        options = {row["id"]: row["logprobs"] for row in rows}
        writers = [item for item in suspects if not (config.probe.shortcuts and after[item.id]["greedy"])]
        arguments = {"config": config, "path": self.sources.tuned, "samples": 0}
        rows = ask("diagnose: responses", units("answers", writers, config.unit), AnswerWorker, arguments)
        written = {row["id"]: row for row in rows}
        self._count_longest(suspects, wrong)
        found = {}
        for item in items:
            draws = choices(item, len(wrong[item.id]), config) if item.id in wrong else []
            # Equal likelihoods count as wrong: they do not tell the right answer from another.
            right = [all(after[item.id]["logprob"] > options[item.id][n] for n in draw) for draw in draws if draw]
            found[item.id] = self._probed(
                item, right, written.get(item.id), after[item.id], before[item.id],
                size=1 + len(draws[0]) if draws else config.probe.options,
            )  # fmt: skip
        return found

    def believed(self, failed: Sequence[Item]) -> dict[str, list[dict[str, Any]]]:
        """The base model's responses to questions, and to their prerequisites as `ID/N`."""
        config, ask = self.config, self.sources.ask
        arguments = {"config": config, "path": self.sources.base, "samples": config.ask_base.samples}
        rows = ask("diagnose: the base model", units("base", failed, config.unit), AnswerWorker, arguments)
        needed = [
            Item(f"{item.id}/{number}", [{"role": "user", "content": question}], answer, "exact",
                 normal_form(answer, "exact"))
            for item in failed
            for number, (question, answer) in enumerate(item.prerequisites)
        ]  # fmt: skip
        arguments = arguments | {"samples": 0}
        rows += ask("diagnose: prerequisites", units("needed", needed, config.unit), AnswerWorker, arguments)
        found: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            found.setdefault(row["id"], []).append(row)
        return found

    def _distractors(self, suspects: Sequence[Item]) -> dict[str, list[str]]:
        size = self._lengths([item.answer for item in self.everyone])
        place = {item.id: index for index, item in enumerate(self.everyone)}
        near = neighbours.nearest_places(self.vectors, [place[item.id] for item in suspects], _NEAR)
        by_id = {item.id: row for item, row in zip(suspects, near, strict=True)}
        return distractors(suspects, self.everyone, by_id, size, self.config)

    def _count_longest(self, suspects: Sequence[Item], wrong: Mapping[str, list[str]]) -> None:
        size = self._lengths([text for item in suspects for text in (item.answer, *wrong[item.id])])
        for item in suspects:
            for draw in choices(item, len(wrong[item.id]), self.config):
                self.drawn += bool(draw)
                shorter = [size[wrong[item.id][number]] < size[item.answer] for number in draw]
                self.longest += bool(draw) and all(shorter)

    def _lengths(self, texts: list[str]) -> dict[str, int]:
        return lengths(texts, self.sources.tuned, self.config.trust_remote_code)

    def _probed(
        self, item: Item, right: Sequence[bool], written: Mapping[str, Any] | None, after: Mapping[str, Any],
        before: Mapping[str, Any], *, size: int,
    ) -> Probed:  # fmt: skip
        probe = self.config.probe
        choice = sum(right) / len(right) if right else 1.0
        wrote = written["right"] if written is not None else True
        return Probed(
            id=item.id,
            choice=choice,
            options=size,
            written=wrote,
            response=written["response"] if written is not None else item.answer,
            finished=written["finished"] if written is not None else True,
            reason=written["reason"] if written is not None else "",
            nll=after["nll"],
            least=after["least"],
            base_nll=before["nll"],
            improved=after["nll"] < before["nll"] - probe.nll_margin,
            shortcut=written is None,
            # What could not be checked is not called wrong.
            verdict=verdict(choice >= probe.unlearned_below, wrote is not False),
        )


def _certain(score: Mapping[str, Any]) -> bool:
    return bool(score["greedy"]) and score["logprob"] > HALF
