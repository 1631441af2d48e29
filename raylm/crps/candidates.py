"""Unverified chains of a batch of trees, by every method: ours, and those that it is compared with.

Nothing here depends on the gold answer. The methods differ in three things only: which paths are contrasted, whose
critique is used, and what is written.
"""

from __future__ import annotations

import asyncio
import collections
import json
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raylm.config import identity
from raylm.crps import pairs, reflect
from raylm.crps.config import SynthesizeConfig
from raylm.crps.filters import fault
from raylm.crps.forms import Forms
from raylm.crps.llm import LlmSynthesizer
from raylm.crps.reflect import Analyst, Critique, Reflection
from raylm.crps.synthesize import Draft, Synthesizer, correction
from raylm.llm.protocol import ModelRef
from raylm.records import Chain, Message, Tree
from raylm.units import unit_key

_CHECKS = ("verified", "clean", "unique", "decontaminated", "selected")
_WITH_PAIRS = ("problems", "with_correct", "with_pair", "candidates", "valid_critiques", *_CHECKS)
STAGES = {
    "crps": _WITH_PAIRS,
    "shuffled": _WITH_PAIRS,
    "correction": _WITH_PAIRS,
    "good_only": ("problems", "with_correct", "candidates", "valid_critiques", *_CHECKS),
    "best_path": ("problems", "with_correct", "candidates", *_CHECKS),
    "rejection": ("problems", "with_correct", "candidates", *_CHECKS),
    "solve": ("problems", "candidates", *_CHECKS),
}
"""The funnel of each method. It counts problems up to `candidates` and chains from there: pairs, and the best paths of
problems without a pair, which need no critique. Within each unit a count never exceeds the one before it."""
COSTS = ("prompt_tokens", "generated_tokens")
"""What the search spent on the trees."""

Counts = collections.Counter[str]
Seconds = dict[str, float]


@dataclass(slots=True)
class _Case:
    """One chain in the making."""

    tree: Tree
    index: int
    pair: pairs.Pair | None = None
    path: pairs.Path | None = None
    """A path that becomes a chain as it is."""
    reflection: Reflection | None = None
    draft: Draft | None = None

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return f"{self.tree.id}/{self.index}"


@dataclass(frozen=True, slots=True)
class Candidates:
    """Makes candidates with one analyst and one synthesizer."""

    config: SynthesizeConfig
    analyst: Analyst
    synthesizer: Synthesizer
    forms: Forms | None = None
    """What ranks correct paths where the config asks for the best form."""
    model: ModelRef | None = None
    """Who answers an analyst or a synthesizer that is a language model."""

    async def of(self, trees: Sequence[Tree], counts: Counts, seconds: Seconds | None = None) -> list[list[Chain]]:
        """The chains of each tree, in a fixed order, counted.

        Args:
            trees: a batch.
            counts: what is counted is added to it.
            seconds: added to by role: how long requests to a language model took, together.
        """
        cases = [self._cases(tree, counts) for tree in trees]
        flat = [case for group in cases for case in group]
        await self._reflect(flat, counts)
        if self.config.method == "shuffled":
            _rotate(cases)
        await asyncio.gather(*(self._write(case) for case in flat))
        if seconds is not None:
            seconds["analyst"] += sum(case.reflection.seconds for case in flat if case.reflection)
            seconds["synthesizer"] += sum(case.draft.seconds for case in flat if case.draft)
        return [[chain for case in group if (chain := self._chain(case, counts)) is not None] for group in cases]

    def _cases(self, tree: Tree, counts: Counts) -> list[_Case]:
        """What is written from a tree: a case with a pair is reflected on first."""
        _count_paths(tree, counts)

        def unfit(path: pairs.Path) -> bool:
            return bool(fault(path.text.rstrip(), tree.question, self.config.filters))

        method, contrasting = self.config.method, "with_pair" in STAGES[self.config.method]
        good = pairs.correct_paths(tree, unfit, self._rank)
        counts["problems"] += 1
        counts["with_correct"] += bool(good)
        counts["with_wrong"] += bool(pairs.paths(tree, "wrong"))
        if good and self.forms is not None and self.forms.poor(good[0]):
            counts["poor_form"] += 1
            return []
        chosen = pairs.select(tree, self.config.pairs, self.config.seed, unfit, self._rank) if contrasting else []
        if method == "correction":
            chosen = [pair for pair in chosen if pair.contrast == "hard"]
        counts["with_pair"] += bool(chosen)
        counts["pairs"] += len(chosen)
        if method == "solve":
            cases = [_Case(tree, index) for index in range(self.config.llm.variants)]
        elif chosen:
            cases = [_Case(tree, index, pair) for index, pair in enumerate(chosen)]
        elif method == "good_only":
            cases = [_Case(tree, index, pairs.lone(tree, path)) for index, path in enumerate(good[:1])]
        else:
            cases = [_Case(tree, index, path=path) for index, path in enumerate(self._alone(good, counts))]
        counts["candidates"] += len(cases)
        return cases

    @property
    def _rank(self) -> pairs.Rank:
        how = self.config.pairs.anchor
        if how == "best_form":
            assert self.forms is not None
            return self.forms.rank
        return pairs.best_value if how == "best_value" else pairs.fewest_steps

    def _alone(self, good: Sequence[pairs.Path], counts: Counts) -> Sequence[pairs.Path]:
        """Paths that become chains as they are."""
        if self.config.method in ("rejection", "best_path"):
            fine = [path for path in good if self.forms is None or not self.forms.poor(path)]
            return fine if self.config.method == "rejection" else fine[:1]
        lone = good[:1] if self.config.without_pair == "best_path" and self.config.method != "correction" else []
        counts["lone_paths"] += len(lone)
        counts["valid_critiques"] += len(lone)
        return lone

    async def _reflect(self, cases: Sequence[_Case], counts: Counts) -> None:
        paired = [case for case in cases if case.pair is not None]
        calls: list[Coroutine[Any, Any, Reflection]] = [
            self.analyst.reflect(case.pair, case.name) for case in paired if case.pair is not None
        ]
        for case, found in zip(paired, await asyncio.gather(*calls), strict=True):
            case.reflection = found
            counts["analyst:prompt_tokens"] += found.prompt_tokens
            counts["analyst:generated_tokens"] += found.generated_tokens
            counts.update(f"rejected:{reason}" for reason in found.rejects)
            if found.critique is not None and case.pair is not None and case.pair.contrast != "none":
                counts["claimed_pivots"] += 1
                counts["pivots_within_one"] += reflect.pivot_error(found.critique, case.pair) <= 1

    async def _write(self, case: _Case) -> None:
        critique = case.reflection.critique if case.reflection else None
        if case.path is not None:
            case.draft = Draft(case.path.text)
        elif self.config.method == "solve":
            assert isinstance(self.synthesizer, LlmSynthesizer)
            case.draft = await self.synthesizer.solve(case.tree.question, case.name)
        elif critique is not None and case.pair is not None:
            if self.config.method == "correction":
                case.draft = Draft(correction(case.pair, critique))
            else:
                case.draft = await self.synthesizer.write(case.pair, critique, case.name)

    def _chain(self, case: _Case, counts: Counts) -> Chain | None:
        """The chain of a case, or None for one that is dropped here, counted."""
        draft = case.draft
        if case.reflection is not None:
            critique = case.reflection.critique
            if critique is None:
                counts["dropped:invalid_critique"] += 1
                return None
            counts["valid_critiques"] += 1
            counts.update(f"failure:{mode.type}" for mode in critique.failure_modes[:1])
        assert draft is not None
        counts["synthesizer:prompt_tokens"] += draft.prompt_tokens
        counts["synthesizer:generated_tokens"] += draft.generated_tokens
        if draft.fault:
            counts[f"dropped:{draft.fault}"] += 1
            return None
        return _record(case, draft, self)


def _rotate(cases: Sequence[Sequence[_Case]]) -> None:
    """Give each tree the critiques of the next one that has some: the control that a critique must beat."""
    reflected = [group for group in cases if any(case.reflection for case in group)]
    found = [[case.reflection for case in group if case.reflection] for group in reflected]
    for place, group in enumerate(reflected):
        others = found[(place + 1) % len(found)]
        for index, case in enumerate(group):
            # A batch with a single such tree has no other critique to give.
            given = others[index % len(others)] if len(found) > 1 else replace(others[0], critique=None)
            case.reflection = given


def _count_paths(tree: Tree, counts: Counts) -> None:
    counts.update({name: getattr(tree, name) for name in COSTS})
    for path in tree.trajectories:
        counts[f"paths:{path.verdict if path.finish_reason == 'stop' else 'cut_off'}"] += 1


def _asked(tree: Tree, pair: pairs.Pair | None, config: SynthesizeConfig) -> list[Message]:
    question = tree.question
    if config.method == "correction" and pair is not None:
        question = f"{question}\n\n{config.correction_prompt}\n\n{pair.negative.text.strip()}"
    return [Message(**message) for message in config.prompt.messages(question)]


def _record(case: _Case, draft: Draft, maker: Candidates) -> Chain:
    config, tree, pair = maker.config, case.tree, case.pair
    critique: Critique | None = case.reflection.critique if case.reflection else None
    written = critique is not None or config.method == "solve"
    synthesizer = "correction" if config.method == "correction" else maker.synthesizer.name
    model = maker.model if written and "llm" in (config.analyst, config.synthesizer) else None
    anchor = pair.anchor if pair else case.path
    contrasted = pair if pair is not None and pair.contrast != "none" else None
    return Chain(
        id=unit_key("chain", json.dumps(identity(config), sort_keys=True), tree.id, case.index),
        messages=[*_asked(tree, pair, config), Message("assistant", draft.text.rstrip())],
        problem_id=tree.problem_id,
        task=tree.task,
        tree_id=tree.id,
        method=config.method,
        contrast=pair.contrast if pair else "none",
        anchor_nodes=list(anchor.nodes) if anchor else [],
        negative_nodes=list(contrasted.negative.nodes) if contrasted else [],
        pivot_node=contrasted.pivot_node if contrasted else -1,
        critique_json=critique.model_dump_json() if critique else "{}",
        critique_hash=critique.digest() if critique else "",
        verdict="correct",  # a chain with another verdict is dropped
        explorer_model=tree.model,
        explorer_revision=tree.revision,
        analyst=maker.analyst.name if critique else "none",
        synthesizer=synthesizer if written else "none",
        seed=config.seed,
        tokens=draft.generated_tokens + (case.reflection.generated_tokens if case.reflection else 0),
        writer_model=model.name if model else "",
        writer_revision=model.revision if model else "",
        temperature=config.llm.temperature if model else 0.0,
        tree_config=tree.config_hash,
        tree_seed=tree.seed,
    )
