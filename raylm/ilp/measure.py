"""From items to verdicts and causes: which questions are put to which model, in what order.

The expensive questions are asked of suspects alone. A sample's answer that has more than half of the tuned model's
probability wins any multiple choice, and one whose every token is the likeliest is what greedy decoding writes: both
are known from the one pass that P3 takes anyway. The base model is asked about what is not learned, and about a sample
of the rest to measure that against; and it is asked no further once no cause can hang on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from raylm.ilp import neighbours
from raylm.ilp.belief import Stakes
from raylm.ilp.causes import Attribution, Signals, Verdict, attribute, verdict
from raylm.ilp.config import DiagnoseConfig
from raylm.ilp.items import Item, chance_floor, choices, distractors, normal_form
from raylm.ilp.log import Log
from raylm.ilp.neighbours import Pair
from raylm.ilp.workers import AnswerWorker, ScoreWorker, certain, lengths, packed
from raylm.storage import Store
from raylm.units import Unit, unit_key

Ask = Callable[[str, list[Unit], Any, dict[str, Any]], list[dict[str, Any]]]
"""(label, units, worker class, its arguments) to the rows of all units."""
Encode = Callable[[list[str]], np.ndarray]
"""Texts to their vectors, of length 1, [texts, dimension]."""
Rows = Mapping[str, dict[str, Any]]
"""Sample to what was asked of it."""
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
    base_nll: float | None
    """Of the base model; None where it was not asked."""
    improved: bool | None
    """P3: whether tuning lowered the loss by more than the margin; None where that was not asked."""
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

    prober = _Prober(everyone, items, config, sources)
    probed = prober.probe()
    failed = [item for item in items if probed[item.id].verdict != "learned"]
    pairs, nearest = prober.same_questions()
    asked = _compared(everyone, items, failed, pairs, config)
    before = scores(asked, config, sources.ask, sources.base, model="base", questions=True)
    probed = {name: _improved(each, before.get(name), config) for name, each in probed.items()}
    maker = SignalMaker(config, everyone, pairs, nearest, probed=probed, before=before, log=sources.log)
    believed = prober.believed(failed, {item.id: maker.stakes(item) for item in failed})
    signals = maker.of(failed, believed)
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
    """Units of `size` items each; `extra` maps an item's id to what its worker needs besides."""
    found = []
    for start in range(0, len(items), size):
        part = items[start : start + size]
        payload: dict[str, Any] = {"items": [packed(item) for item in part]}
        if extra is not None:
            payload["extra"] = [extra[item.id] for item in part]
        found.append(Unit(unit_key("diagnose", label, *(item.id for item in part)), payload))
    return found


def scores(
    items: Sequence[Item], config: DiagnoseConfig, ask: Ask, path: str, *, model: str, of: str = "",
    questions: bool = False, options: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """What the model at a path makes of the items' own answers, by id: rows of `workers.SCORES`.

    Args:
        items: the samples.
        config: of the stage.
        ask: runs workers.
        path: of the model's directory.
        model: its name in the rows.
        of: what the items are, for the progress line, where they are not the samples.
        questions: whether the questions' familiarity is asked for, too.
        options: other answers by id, scored where the own answer is not sure to be chosen.
    """
    arguments = {"config": config, "path": path, "model": model, "questions": questions}
    asked = units(f"{of}score-{model}", items, config.unit, options)
    return {row["id"]: row for row in ask(f"diagnose: {of}{model} scores", asked, ScoreWorker, arguments)}


def _compared(
    everyone: Sequence[Item], items: Sequence[Item], failed: Sequence[Item], pairs: Sequence[Pair],
    config: DiagnoseConfig,
) -> list[Item]:  # fmt: skip
    """What the base model scores: all that is not learned, what contradicts it, and learned ones to compare with."""
    wanted = {item.id for item in failed}
    rest = [item for item in items if item.id not in wanted]
    count = config.ask_base.learned
    if count and count < len(rest):
        drawn = np.random.default_rng([config.seed, 7]).choice(len(rest), count, replace=False)
        rest = [rest[place] for place in drawn]
    wanted |= neighbours.touched(everyone, pairs, wanted) | {item.id for item in rest}
    return [item for item in everyone if item.id in wanted]


def _improved(probed: Probed, before: Mapping[str, Any] | None, config: DiagnoseConfig) -> Probed:
    """With P3's comparison, where the base model was asked."""
    if before is None:
        return probed
    return replace(probed, base_nll=before["nll"], improved=probed.nll < before["nll"] - config.probe.nll_margin)


class _Prober:
    """Asks the tuned model to choose and to write, and the base model what it believes."""

    def __init__(
        self, everyone: Sequence[Item], items: Sequence[Item], config: DiagnoseConfig, sources: Sources
    ) -> None:
        self.items, self.config, self.sources = items, config, sources
        wanted = {item.id for item in items}
        self.places = neighbours.surroundings(everyone, wanted, config.rules, config.around, config.seed)
        self.around = [everyone[place] for place in self.places]
        self.count = len(everyone)
        self.vectors = sources.encode([item.question for item in self.around])
        self.drawn = self.longest = 0

    def probe(self) -> dict[str, Probed]:
        """P1, P2, what the tuned model says of P3, and the verdict of each item."""
        config, ask, path = self.config, self.sources.ask, self.sources.tuned
        size = self._lengths()
        wrong = self._distractors(size)
        after = scores(self.items, config, ask, path, model="tuned", options=wrong)
        writers = [item for item in self.items if not (config.probe.shortcuts and after[item.id]["greedy"])]
        arguments = {"config": config, "path": path, "samples": 0}
        rows = ask("diagnose: responses", units("answers", writers, config.unit), AnswerWorker, arguments)
        written = {row["id"]: row for row in rows}
        found = {}
        for item in self.items:
            own = after[item.id]
            sure = config.probe.shortcuts and certain(own["greedy"], own["logprob"])
            draws = [] if sure else choices(item, len(wrong[item.id]), config)
            self._count_longest(item, wrong[item.id], draws, size)
            # Equal likelihoods count as wrong: they do not tell the right answer from another.
            right = [all(own["logprob"] > own["options"][n] for n in draw) for draw in draws if draw]
            options = 1 + len(draws[0]) if draws else config.probe.options
            found[item.id] = self._probed(item, right, written.get(item.id), own, options)
        return found

    def same_questions(self) -> tuple[list[Pair], np.ndarray]:
        """As `neighbours.same_questions`, with places among all samples."""
        pairs, near = neighbours.same_questions(self.around, self.vectors, self.config.rules)
        nearest = np.zeros(self.count)
        nearest[self.places] = near
        return [replace(pair, left=self.places[pair.left], right=self.places[pair.right]) for pair in pairs], nearest

    def believed(self, failed: Sequence[Item], stakes: Mapping[str, Stakes]) -> dict[str, list[dict[str, Any]]]:
        """The base model's responses to questions, and to their prerequisites as `ID/N`."""
        config, ask = self.config, self.sources.ask
        arguments = {"config": config, "path": self.sources.base, "samples": config.ask_base.samples}
        early = config.ask_base.stop_early
        asked = [item for item in failed if stakes[item.id] or not early]
        told = {item.id: astuple(stakes[item.id]) for item in asked} if early else None
        rows = ask("diagnose: the base model", units("base", asked, config.unit, told), AnswerWorker, arguments)
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

    def _distractors(self, size: Mapping[str, int]) -> dict[str, list[str]]:
        place = {item.id: index for index, item in enumerate(self.around)}
        near = neighbours.nearest_places(self.vectors, [place[item.id] for item in self.items], _NEAR)
        by_id = {item.id: row for item, row in zip(self.items, near, strict=True)}
        return distractors(self.items, self.around, by_id, size, self.config)

    def _count_longest(
        self, item: Item, wrong: Sequence[str], draws: Sequence[Sequence[int]], size: Mapping[str, int]
    ) -> None:
        for draw in draws:
            self.drawn += bool(draw)
            self.longest += bool(draw) and all(size[wrong[number]] < size[item.answer] for number in draw)

    def _lengths(self) -> dict[str, int]:
        answers = [item.answer for item in self.around]
        return lengths(answers, self.sources.tuned, self.config.trust_remote_code)

    def _probed(
        self, item: Item, right: Sequence[bool], written: Mapping[str, Any] | None, after: Mapping[str, Any],
        options: int,
    ) -> Probed:  # fmt: skip
        choice = sum(right) / len(right) if right else 1.0
        wrote = written["right"] if written is not None else True
        return Probed(
            id=item.id,
            choice=choice,
            options=options,
            written=wrote,
            response=written["response"] if written is not None else item.answer,
            finished=written["finished"] if written is not None else True,
            reason=written["reason"] if written is not None else "",
            nll=after["nll"],
            least=after["least"],
            base_nll=None,
            improved=None,
            shortcut=written is None,
            # What could not be checked is not called wrong.
            verdict=verdict(choice >= self.config.probe.unlearned_below, wrote is not False),
        )
