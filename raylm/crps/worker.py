"""What an actor of the synthesize stage does with a batch of trees."""

from __future__ import annotations

import asyncio
import collections
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raylm.config import identity
from raylm.crps import pairs, reflect
from raylm.crps.config import SynthesizeConfig
from raylm.crps.filters import Contamination, Copies, fault
from raylm.crps.synthesize import StructuralSynthesizer
from raylm.records import Chain, Message, Problem, Tree, from_table, to_table
from raylm.storage import Store
from raylm.units import Unit, unit_key

if TYPE_CHECKING:
    from raylm.tasks.verify import VerifierPool

_CHECKS = ("verified", "clean", "unique", "decontaminated", "selected")
STAGES = {
    "crps": ("problems", "with_correct", "with_pair", "candidates", "valid_critiques", *_CHECKS),
    "best_path": ("problems", "with_correct", "candidates", *_CHECKS),
    "rejection": ("problems", "with_correct", "candidates", *_CHECKS),
}
"""The funnel of each method. It counts problems up to `candidates` and chains from there: pairs, and the best paths of
problems without a pair, which need no critique. Within each unit a count never exceeds the one before it."""
COSTS = ("prompt_tokens", "generated_tokens")
"""What the search spent on the trees."""
_OPEN_SHARDS = 2

Counts = collections.Counter[str]


class SynthesizeWorker:
    """Turns trees into chains that pass every check."""

    def __init__(self, config: SynthesizeConfig, questions: Sequence[tuple[str, str]]) -> None:
        """Work for `config`; `questions` are those of the evaluation with the names of their sources."""
        self.config, self.questions = config, questions
        self.source = Store(config.trees)
        self.verifier: VerifierPool | None = None
        self.shards: dict[str, pa.Table] = {}

    async def start(self) -> None:
        """Index the evaluation questions and open the verifier."""
        from raylm.tasks.verify import VerifierPool

        self.contamination = Contamination(self.questions, self.config.filters.ngram)
        self.verifier = VerifierPool(self.config.verifier)

    async def run(self, unit: Unit, store: Store) -> tuple[pa.Table, dict[str, Any]]:
        """The chains of a batch, and the counts of what was dropped on the way."""
        counts: Counts = collections.Counter()
        chains: list[Chain] = []
        for places in unit.payload["questions"]:
            chains += await self._question([self._tree(name, row) for name, row in places], counts)
        return to_table(Chain, chains), {"counts": dict(counts)}

    async def close(self) -> None:
        """End the verifier's processes."""
        if self.verifier is not None:
            self.verifier.close()

    async def _question(self, trees: Sequence[Tree], counts: Counts) -> list[Chain]:
        """The chains of all trees of one question, which share their copies and their limit."""
        copies = Copies(self.config.filters.dedup_jaccard)
        selected: list[Chain] = []
        leaked = self.contamination.found(trees[0].question)
        for tree in trees:
            found = candidates(tree, self.config, counts)
            verdicts = await asyncio.gather(*(self._verdict(tree, chain) for chain in found))
            for chain, verdict in zip(found, verdicts, strict=True):
                reason = self._drop(chain, verdict, copies, leaked, counts)
                if not reason and len(selected) == self.config.filters.max_per_problem:
                    reason = "over_limit"
                if reason:
                    counts[f"dropped:{reason}"] += 1
                    continue
                counts["selected"] += 1
                selected.append(chain)
        counts["problems_selected"] += bool(selected)
        return selected

    async def _verdict(self, tree: Tree, chain: Chain) -> str:
        assert self.verifier is not None
        problem = Problem(tree.problem_id, tree.task, tree.question, tree.answer, tree.checker, tree.metadata_json)
        return (await self.verifier.verify(problem, chain.messages[-1].content)).verdict

    def _drop(self, chain: Chain, verdict: str, copies: Copies, leaked: bool, counts: Counts) -> str:
        """The first reason to drop a chain, empty when there is none; counts the stages that it reaches."""
        question, response = (message.content for message in chain.messages[-2:])
        if verdict != "correct":
            return verdict
        counts["verified"] += 1
        if reason := fault(response, question, self.config.filters):
            return reason
        counts["clean"] += 1
        if reason := copies.reason(response):
            return reason
        counts["unique"] += 1
        if leaked or self.contamination.found(response):
            return "contaminated"
        counts["decontaminated"] += 1
        return ""

    def _tree(self, name: str, row: int) -> Tree:
        if name not in self.shards:
            while len(self.shards) >= _OPEN_SHARDS:
                self.shards.pop(next(iter(self.shards)))
            self.shards[name] = self.source.read_table(name)
        return from_table(Tree, self.shards[name].slice(row, 1))[0]


def candidates(tree: Tree, config: SynthesizeConfig, counts: Counts) -> list[Chain]:
    """Unverified chains of one tree, counted. Pure: nothing of it depends on the gold answer."""
    _count_paths(tree, counts)

    def unfit(path: pairs.Path) -> bool:
        return bool(fault(path.text.rstrip(), tree.question, config.filters))

    counts["problems"] += 1
    counts["with_correct"] += bool(pairs.paths(tree, "correct"))
    counts["with_wrong"] += bool(pairs.paths(tree, "wrong"))
    if config.method == "crps":
        chosen = pairs.select(tree, config.pairs, config.seed, unfit)
        if chosen:
            return _contrast(tree, chosen, config, counts)
    lone = pairs.correct_paths(tree, unfit)
    if config.method == "best_path":
        lone = lone[:1]
    elif config.method == "crps":
        lone = lone[:1] if config.without_pair == "best_path" else []
        counts["lone_paths"] += len(lone)
        counts["valid_critiques"] += len(lone)
    counts["candidates"] += len(lone)
    return [_chain(tree, config, path.text, index, path) for index, path in enumerate(lone)]


def _contrast(tree: Tree, chosen: Sequence[pairs.Pair], config: SynthesizeConfig, counts: Counts) -> list[Chain]:
    analyst, synthesizer = reflect.StructuralAnalyst(), StructuralSynthesizer(config.pitfall)
    counts["with_pair"] += 1
    counts["pairs"] += len(chosen)
    counts["candidates"] += len(chosen)
    chains = []
    for index, pair in enumerate(chosen):
        critique = analyst.reflect(pair)
        if reflect.faults(critique, pair):
            counts["dropped:invalid_critique"] += 1
            continue
        counts["valid_critiques"] += 1
        counts[f"failure:{critique.failure_modes[0].type}"] += 1
        text = synthesizer.write(pair, critique)
        chains.append(_chain(tree, config, text, index, pair.anchor, pair=pair, critique=critique))
    return chains


def _count_paths(tree: Tree, counts: Counts) -> None:
    counts.update({name: getattr(tree, name) for name in COSTS})
    for path in tree.trajectories:
        counts[f"paths:{path.verdict if path.finish_reason == 'stop' else 'cut_off'}"] += 1


def _chain(
    tree: Tree,
    config: SynthesizeConfig,
    text: str,
    index: int,
    anchor: pairs.Path,
    *,
    pair: pairs.Pair | None = None,
    critique: reflect.Critique | None = None,
) -> Chain:
    asked = [Message(**message) for message in config.prompt.messages(tree.question)]
    return Chain(
        id=unit_key("chain", json.dumps(identity(config), sort_keys=True), tree.id, index),
        messages=[*asked, Message("assistant", text.rstrip())],
        problem_id=tree.problem_id,
        task=tree.task,
        tree_id=tree.id,
        method=config.method,
        contrast=pair.contrast if pair else "none",
        anchor_nodes=list(anchor.nodes),
        negative_nodes=list(pair.negative.nodes) if pair else [],
        pivot_node=pair.pivot_node if pair else -1,
        critique_json=critique.model_dump_json() if critique else "{}",
        critique_hash=critique.digest() if critique else "",
        verdict="correct",  # a chain with another verdict is dropped
        explorer_model=tree.model,
        explorer_revision=tree.revision,
        analyst=config.analyst if critique else "none",
        synthesizer=config.synthesizer if critique else "none",
        seed=config.seed,
        tokens=0,
    )
