"""The synthesize stage: trees in, verified training chains with lineage and funnel out."""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raylm.config import identity
from raylm.crps import pairs, reflect
from raylm.crps.config import SynthesizeConfig
from raylm.crps.filters import Contamination, fault, unique
from raylm.crps.synthesize import StructuralSynthesizer
from raylm.errors import UserError
from raylm.llm.config import ComputeConfig
from raylm.records import Chain, Message, Problem, Trajectory, Tree, from_table, to_table
from raylm.storage import Manifest, StageRun, Store
from raylm.units import Unit, UnitsReport, check_failures, read_unit, run_units, unit_key

if TYPE_CHECKING:
    from raylm.tasks.verify import VerifierPool

TREES_PER_UNIT = 32
FUNNEL = ("candidates", "valid", "verified", "clean", "decontaminated", "unique", "selected")


def run(config: SynthesizeConfig) -> Manifest:
    """Write chains; a second call with the same config and trees returns at once.

    Raises:
        UserError: the trees are not finished, an evaluation question is among them, or no chain passes.
    """
    from raylm import report

    source = Store(config.trees)
    manifest = source.manifest()
    if manifest is None:
        raise UserError(f"trees={config.trees}: no finished trees here (manifest.json is missing); run explore first")
    stage = StageRun("synthesize", config, config.out, {"trees": manifest.digest()})
    if stage.finished is None:
        trees = from_table(Tree, source.read_data())
        _refuse_overlap(trees, config)
        starts = range(0, len(trees), TREES_PER_UNIT)
        units = [Unit(unit_key("synthesize", start), {"start": start}) for start in starts]
        compute = ComputeConfig(min_workers=1, max_workers=config.parallelism, cpus=1, in_flight=4)
        done = run_units(
            units,
            SynthesizeWorker,
            {"config": config},
            stage.store,
            compute,
            label="synthesize",
            noun="batches of trees",
        )
        check_failures(done, len(units), 0.0, stage.store, "batches of trees")
        _finish(stage, config, trees, units, done)
    report.for_stage("synthesize", stage.store)
    assert stage.finished is not None
    return stage.finished


class SynthesizeWorker:
    """Turns a batch of trees into chains that pass every check but those across trees."""

    def __init__(self, config: SynthesizeConfig) -> None:
        self.config = config
        self.verifier: VerifierPool | None = None
        self.trees: list[Tree] = []

    async def start(self) -> None:
        """Read the trees and the evaluation questions, start the verifier."""
        from raylm.tasks.sources import load_problems
        from raylm.tasks.verify import VerifierPool

        self.trees = from_table(Tree, Store(self.config.trees).read_data())
        questions = [problem.question for problem in load_problems(self.config.evaluation)]
        self.contamination = Contamination(questions, self.config.filters.ngram)
        self.verifier = VerifierPool(self.config.verifier)

    async def run(self, unit: Unit, store: Store) -> tuple[pa.Table, dict[str, Any]]:
        """Chains of one batch, and the counts of what was dropped on the way."""
        start = unit.payload["start"]
        chains: list[Chain] = []
        counts: collections.Counter[str] = collections.Counter()
        for tree in self.trees[start : start + TREES_PER_UNIT]:
            for chain in candidates(tree, self.config, counts):
                if await self._passes(tree, chain, counts):
                    chains.append(chain)
        return to_table(Chain, chains), {"counts": dict(counts)}

    async def _passes(self, tree: Tree, chain: Chain, counts: collections.Counter[str]) -> bool:
        assert self.verifier is not None
        response = chain.messages[-1].content
        problem = Problem(tree.problem_id, tree.task, tree.question, tree.answer, tree.checker, tree.metadata_json)
        verdict = (await self.verifier.verify(problem, response)).verdict
        if verdict != "correct":
            counts[f"dropped_{verdict}"] += 1
            return False
        counts["verified"] += 1
        reason = fault(response, self.config.filters)
        if reason:
            counts[f"dropped_{reason}"] += 1
            return False
        counts["clean"] += 1
        if self.contamination.found(tree.question, response):
            counts["dropped_contaminated"] += 1
            return False
        counts["decontaminated"] += 1
        return True

    async def close(self) -> None:
        """End the verifier's processes."""
        if self.verifier is not None:
            self.verifier.close()


def candidates(tree: Tree, config: SynthesizeConfig, counts: collections.Counter[str]) -> list[Chain]:
    """Unverified chains of one tree, counted. Pure: a function of the tree and the config, never of the gold answer."""
    good = pairs.rank(tree, pairs.correct(tree))
    counts["problems"] += 1
    counts["with_correct"] += bool(good)
    counts["with_wrong"] += bool(pairs.wrong(tree))
    if config.method != "crps":
        paths = good if config.method == "rejection" else good[:1]
        counts["candidates"] += len(paths)
        counts["valid"] += len(paths)
        return [_chain(tree, config, path.text, index, path) for index, path in enumerate(paths)]
    chosen = pairs.select(tree, config.pairs, config.seed)
    counts["with_pair"] += bool(chosen)
    if not chosen:
        lone = good[:1] if config.without_pair == "best_path" else []
        counts["candidates"] += len(lone)
        counts["valid"] += len(lone)
        counts["lone_paths"] += len(lone)
        return [_chain(tree, config, path.text, 0, path) for path in lone]
    analyst, synthesizer = reflect.StructuralAnalyst(), StructuralSynthesizer(config.pitfall)
    chains = []
    for index, pair in enumerate(chosen):
        counts["candidates"] += 1
        critique = analyst.reflect(tree, pair)
        if reflect.problems(critique, tree, pair):
            counts["dropped_critique"] += 1
            continue
        counts["valid"] += 1
        text = synthesizer.write(tree, pair, critique)
        chains.append(_chain(tree, config, text, index, pair.anchor, pair=pair, critique=critique))
    return chains


def _chain(
    tree: Tree,
    config: SynthesizeConfig,
    text: str,
    index: int,
    anchor: Trajectory,
    *,
    pair: pairs.Pair | None = None,
    critique: reflect.Critique | None = None,
) -> Chain:
    asked = [Message(**message) for message in config.prompt.messages(tree.question)]
    return Chain(
        id=unit_key("chain", json.dumps(identity(config), sort_keys=True), tree.id, index),
        messages=[*asked, Message("assistant", text.rstrip("\n"))],
        problem_id=tree.problem_id,
        task=tree.task,
        tree_id=tree.id,
        method=config.method,
        contrast=pair.contrast if pair else "none",
        anchor_nodes=anchor.node_ids,
        negative_nodes=pair.negative.node_ids if pair else [],
        pivot_node=pair.pivot_node if pair else -1,
        critique_json=critique.model_dump_json() if critique else "{}",
        critique_hash=critique.digest() if critique else "",
        verdict="correct",
        explorer_model=tree.model,
        explorer_revision=tree.revision,
        analyst=config.analyst if critique else "none",
        synthesizer=config.synthesizer if critique else "none",
        seed=config.seed,
        tokens=0,
    )


def _refuse_overlap(trees: Sequence[Tree], config: SynthesizeConfig) -> None:
    from raylm.tasks.sources import load_problems, overlap

    if not config.evaluation:
        return
    explored = [Problem(tree.problem_id, tree.task, tree.question, tree.answer) for tree in trees]
    shared = overlap(explored, load_problems(config.evaluation))
    if shared:
        listed = ", ".join(problem.id for problem in shared[:5])
        raise UserError(f"{len(shared)} explored problems are evaluation questions ({listed}); explore other problems")


def _finish(
    stage: StageRun, config: SynthesizeConfig, trees: Sequence[Tree], units: Sequence[Unit], done: UnitsReport
) -> None:
    counts: collections.Counter[str] = collections.Counter()
    for unit in units:
        counts.update(done.summaries[unit.key]["counts"])
    by_problem: dict[str, list[Chain]] = {}
    for unit in units:
        for chain in from_table(Chain, read_unit(stage.store, unit.key)):
            by_problem.setdefault(chain.problem_id, []).append(chain)
    distinct = {problem: unique(chains, config.filters.dedup_jaccard) for problem, chains in by_problem.items()}
    selected = [chain for chains in distinct.values() for chain in chains[: config.filters.max_per_problem]]
    counts["unique"] = sum(map(len, distinct.values()))
    counts["selected"] = len(selected)
    funnel = (
        {name: counts[name] for name in ("problems", "with_correct", "with_pair")}
        if config.method == "crps"
        else {name: counts[name] for name in ("problems", "with_correct")}
    )
    funnel |= {name: counts[name] for name in FUNNEL}
    if not selected:
        raise UserError(
            f"no chain passed ({', '.join(f'{key} {value}' for key, value in funnel.items())}); search longer"
        )
    lines = [
        json.dumps({"messages": [asdict(message) for message in chain.messages], "id": chain.id}) for chain in selected
    ]
    stage.store.write_bytes("chains.jsonl", ("\n".join(lines) + "\n").encode())
    rows = stage.write_rows([to_table(Chain, selected)])
    stage.finish(
        rows,
        files=("chains.jsonl",),
        timing={"seconds": done.seconds, "trees_per_second": len(trees) / done.seconds if done.seconds else 0.0},
        funnel=funnel,
        tokens={"analyst": 0, "synthesizer": 0},
        figures={
            "dropped": {name: count for name, count in sorted(counts.items()) if name.startswith("dropped_")},
            "contrast": dict(sorted(collections.Counter(chain.contrast for chain in selected).items())),
            "without_wrong": counts["problems"] - counts["with_wrong"],
            "lone_paths": counts["lone_paths"],
        },
    )
