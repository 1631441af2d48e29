"""What an actor of the synthesize stage does with a batch of trees."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raylm import telemetry
from raylm.crps.candidates import Candidates, Counts
from raylm.crps.config import SynthesizeConfig
from raylm.crps.filters import Contamination, Copies, fault
from raylm.crps.forms import Forms
from raylm.crps.llm import LlmAnalyst, LlmSynthesizer
from raylm.crps.reflect import StructuralAnalyst
from raylm.crps.synthesize import StructuralSynthesizer
from raylm.records import Chain, Problem, Tree, from_table, to_table
from raylm.search.value import Scorer
from raylm.storage import Store
from raylm.units import Unit

if TYPE_CHECKING:
    from raylm.llm.protocol import Engine
    from raylm.tasks.verify import VerifierPool

_OPEN_SHARDS = 2


class SynthesizeWorker:
    """Turns trees into chains that pass every check."""

    def __init__(
        self, config: SynthesizeConfig, questions: Sequence[tuple[str, str]], forms: Forms | None = None
    ) -> None:
        """Work for `config`.

        Args:
            config: of the stage.
            questions: those of the evaluation with the names of their sources.
            forms: learned from all trees, where the config asks for the best form.
        """
        self.config, self.questions, self.forms = config, questions, forms
        self.source = Store(config.trees)
        self.verifier: VerifierPool | None = None
        self.engine: Engine | None = None
        self.maker: Candidates | None = None
        self.scorer: Scorer | None = None
        # A correction quotes the mistake.
        quoting = {"check_arithmetic": False} if config.method == "correction" else {}
        self.filters = config.filters.model_copy(update=quoting)
        self.shards: dict[str, pa.Table] = {}

    async def start(self) -> None:
        """Index the evaluation questions, open the verifier, and load the language model where one is asked."""
        from raylm.tasks.verify import VerifierPool

        config = self.config
        if config.uses_llm:
            from raylm.llm import engine

            compute = config.llm.compute
            self.engine = await engine.build(config.llm.engine, cpus=compute.cpus, gpus=compute.gpus)
        self.maker = make(config, self.engine, self.forms)
        self.contamination = Contamination(self.questions, self.config.filters.ngram)
        self.verifier = self.verifier or VerifierPool(self.config.verifier)
        if self.config.filters.reward_model:
            from raylm.llm import reward

            self.scorer = self.scorer or await reward.build(self.config.filters.reward_model)

    async def run(self, unit: Unit, store: Store) -> tuple[pa.Table, dict[str, Any]]:
        """The chains of a batch, and the counts of what was dropped on the way."""
        maker, engine = self.maker, self.engine
        assert maker is not None
        counts: Counts = collections.Counter()
        questions = [[self._tree(name, row) for name, row in places] for places in unit.payload["questions"]]
        seconds = {"analyst": 0.0, "synthesizer": 0.0}
        found = await maker.of([tree for trees in questions for tree in trees], counts, seconds)
        by_tree = iter(found)
        chains: list[Chain] = []
        for trees in questions:
            chains += await self._question([(tree, next(by_tree)) for tree in trees], counts)
        telemetry.count("raylm_verified_chains", counts["verified"])
        facts = {"model": asdict(engine.model), "engine": engine.name} if engine is not None else {}
        return to_table(Chain, chains), {"counts": dict(counts), "seconds_by_role": seconds, **facts}

    async def close(self) -> None:
        """Free the model. The verifier stays: other units may be waiting for verdicts, which must not change."""
        engine, self.engine = self.engine, None
        if engine is not None:
            await engine.close()

    async def _question(self, trees: Sequence[tuple[Tree, list[Chain]]], counts: Counts) -> list[Chain]:
        """Of the candidates of all trees of one question, which share their copies and their limit, what passes."""
        copies = Copies(self.config.filters.dedup_jaccard)
        selected: list[Chain] = []
        leaked = self.contamination.found(trees[0][0].question)
        for tree, found in trees:
            verdicts = await asyncio.gather(*(self._verdict(tree, chain) for chain in found))
            for chain, verdict in zip(found, verdicts, strict=True):
                reason = self._drop(chain, verdict, copies, leaked, counts)
                if not reason and self.scorer is not None:
                    reason = await self._unrewarded(chain)
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
        if reason := fault(response, question, self.filters):
            return reason
        counts["clean"] += 1
        if reason := copies.reason(response):
            return reason
        counts["unique"] += 1
        if leaked or self.contamination.found(response):
            return "contaminated"
        counts["decontaminated"] += 1
        return ""

    async def _unrewarded(self, chain: Chain) -> str:
        """`low_reward` where the reward model thinks too little of a chain, `too_long` where it cannot read it all."""
        assert self.scorer is not None
        question, response = (message.content for message in chain.messages[-2:])
        try:
            worth = await self.scorer.score(question, response)
        except ValueError:
            return "too_long"
        if worth < self.config.filters.min_reward:
            return "low_reward"
        return ""

    def _tree(self, name: str, row: int) -> Tree:
        if name not in self.shards:
            while len(self.shards) >= _OPEN_SHARDS:
                self.shards.pop(next(iter(self.shards)))
            self.shards[name] = self.source.read_table(name)
        return from_table(Tree, self.shards[name].slice(row, 1))[0]


def make(config: SynthesizeConfig, engine: Engine | None, forms: Forms | None = None) -> Candidates:
    """The maker of candidates that a config names; `engine` answers what is llm in it, `forms` ranks anchors."""
    analyst: StructuralAnalyst | LlmAnalyst = StructuralAnalyst()
    synthesizer: StructuralSynthesizer | LlmSynthesizer = StructuralSynthesizer(config.pitfall)
    if engine is not None and config.analyst == "llm":
        analyst = LlmAnalyst(engine, config.llm, config.seed)
    if engine is not None and config.synthesizer == "llm":
        examples = config.prompt.examples
        style = config.llm.style or (examples[0].response if examples else "")
        synthesizer = LlmSynthesizer(engine, config.llm, config.seed, style)
    return Candidates(config, analyst, synthesizer, forms, engine.model if engine is not None else None)
