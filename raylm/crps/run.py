"""The synthesize stage: trees in, verified training chains with lineage, funnel and costs out."""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from raylm.crps.candidates import COSTS, STAGES
from raylm.crps.config import SynthesizeConfig
from raylm.crps.forms import ENOUGH, Forms
from raylm.crps.summary import print_funnel
from raylm.crps.worker import SynthesizeWorker
from raylm.errors import UserError
from raylm.llm.config import ComputeConfig
from raylm.records import Chain, Problem, Tree, from_table
from raylm.storage import Manifest, StageRun, Store
from raylm.tasks.answers import normalize_question
from raylm.units import Unit, UnitsReport, check_failures, read_unit, run_units, unit_key

TREES_PER_UNIT = 32
TREES_PER_LLM_UNIT = 4
"""Where a language model is asked a unit is worth more, so less of it may be lost."""
_LISTED = 10
FORMS = "forms.json"
"""What was learned about forms of reasoning."""


def run(config: SynthesizeConfig) -> Manifest:
    """Write chains; a second call with the same config and inputs returns at once.

    Raises:
        UserError: the trees are missing or not finished, an explored question is an evaluation question, or no chain
            passes.
    """
    from raylm import report
    from raylm.llm import models
    from raylm.tasks.sources import load_problems

    source = Store(config.trees)
    manifest = _trees_manifest(source)
    evaluation = load_problems(config.evaluation)
    inputs = {"trees": manifest.digest()} | ({"evaluation": _digest(evaluation)} if evaluation else {})
    if config.uses_llm:
        engine = config.llm.engine
        inputs["model"] = models.resolve(engine.model, engine.revision, engine.trust_remote_code).ref.revision
    if config.filters.reward_model:
        inputs["reward_model"] = models.resolve_encoder(config.filters.reward_model).ref.revision
    stage = StageRun("synthesize", config, config.out, inputs)
    if stage.finished is None:
        explored = _explored(source, manifest)
        _refuse_overlap([problem for problem, _ in explored], evaluation)
        units = _units(explored, TREES_PER_LLM_UNIT if config.uses_llm else TREES_PER_UNIT)
        done = run_units(
            units,
            SynthesizeWorker,
            {
                "config": config,
                "questions": [(item.task, item.question) for item in evaluation],
                "forms": _forms(config, source, manifest, stage.store, len(explored)),
            },
            stage.store,
            config.llm.compute
            if config.uses_llm
            else ComputeConfig(min_workers=1, max_workers=config.parallelism, cpus=1, in_flight=4),
            label="synthesize",
            noun="batches of trees",
            note=lambda summary: f"{summary['counts'].get('selected', 0)} chains of the newest batch",
        )
        check_failures(done, len(units), 0.0, stage.store, "batches of trees")
        _finish(stage, STAGES[config.method], units, done, len(evaluation))
    report.for_stage("synthesize", stage.store)
    assert stage.finished is not None
    print_funnel(stage.finished)
    return stage.finished


def _trees_manifest(source: Store) -> Manifest:
    manifest = source.manifest()
    if manifest is None:
        raise UserError(f"trees={source.url}: no finished trees here (manifest.json is missing); run explore first")
    if manifest.stage != "explore":
        raise UserError(f"trees={source.url}: this is the artefact of {manifest.stage}; trees are in that of explore")
    return manifest


def _explored(source: Store, manifest: Manifest) -> list[tuple[Problem, tuple[str, int]]]:
    """The problem of every tree, without its answer, and the file and row where the tree is."""
    found = []
    for name in sorted(name for name in manifest.outputs if name.startswith("data/") and name.endswith(".parquet")):
        table = source.read_table(name).select(["problem_id", "task", "question"])
        for row, item in enumerate(table.to_pylist()):
            found.append((Problem(item["problem_id"], item["task"], item["question"], ""), (name, row)))
    if not found:
        raise UserError(f"trees={source.url}: the artefact holds no trees")
    return found


def _forms(config: SynthesizeConfig, source: Store, manifest: Manifest, store: Store, count: int) -> Forms | None:
    """What the trees teach about forms, learned once and kept: a run that goes on must rank as it began."""
    if config.pairs.anchor != "best_form":
        return None
    if store.exists(FORMS):
        return Forms.of_json(store.read_json(FORMS))
    trees = (
        tree
        for name in sorted(manifest.outputs)
        if name.startswith("data/") and name.endswith(".parquet")
        for tree in from_table(Tree, source.read_table(name))
    )
    forms = Forms.fit(trees, config.seed, config.pairs.keep, count)
    if not forms.weights:
        raise UserError(
            f"pairs.anchor=best_form: {forms.learned_from} pairs of a correct and a wrong path are too few to learn "
            f"forms from ({ENOUGH} at least); explore more problems, or set pairs.anchor=fewest_steps"
        )
    store.write_json(FORMS, forms.as_json())
    return forms


def _refuse_overlap(explored: Sequence[Problem], evaluation: Sequence[Problem]) -> None:
    from raylm.tasks.sources import overlap, short

    shared = overlap(explored, evaluation)
    if shared:
        listed = "; ".join(f"{item.id} {short(item.question)!r}" for item in shared[:_LISTED])
        more = f"; and {len(shared) - _LISTED} more" if len(shared) > _LISTED else ""
        raise UserError(
            f"trees: {len(shared)} explored questions are evaluation questions ({listed}{more}); explore other "
            "problems, or evaluate on others (other seeds, offsets, splits, or part: train and part: test)"
        )


def _units(explored: Sequence[tuple[Problem, tuple[str, int]]], size: int) -> list[Unit]:
    """Batches of trees in their order; trees of one question share a batch, where their chains are compared."""
    questions: dict[str, list[tuple[str, int]]] = {}
    for problem, place in explored:
        questions.setdefault(normalize_question(problem.question), []).append(place)
    batches: list[list[list[tuple[str, int]]]] = [[]]
    for places in questions.values():
        if sum(map(len, batches[-1])) >= size:
            batches.append([])
        batches[-1].append(places)
    return [
        Unit(unit_key("synthesize", number), {"questions": questions_of_batch})
        for number, questions_of_batch in enumerate(batches)
    ]


def _finish(
    stage: StageRun, stages: Sequence[str], units: Sequence[Unit], done: UnitsReport, evaluation_questions: int
) -> None:
    counts: collections.Counter[str] = collections.Counter()
    for unit in units:
        counts.update(done.summaries[unit.key]["counts"])
    funnel = {name: counts[name] for name in stages}
    figures = _figures(counts) | {"evaluation_questions": evaluation_questions}
    if not counts["selected"]:
        reached = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in funnel.items())
        drops = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in figures["dropped"].items())
        raise UserError(
            f"no chain passed ({reached}; dropped: {drops or 'none'}); search longer, or on easier problems, or loosen "
            "what drops most"
        )
    tables = [read_unit(stage.store, unit.key) for unit in units]
    rows = stage.write_rows(tables)
    stage.store.write_bytes("chains.jsonl", _jsonl(chain for table in tables for chain in from_table(Chain, table)))
    figures["contrast"] = _tally(value for table in tables for value in table.column("contrast").to_pylist())
    stage.finish(
        rows,
        files=("chains.jsonl", *([FORMS] if stage.store.exists(FORMS) else [])),
        timing={
            "seconds": done.seconds,
            "resumed": done.resumed,
            "trees_per_second": counts["problems"] / done.seconds if done.seconds else 0.0,
            "request_seconds": {
                role: sum(summary["seconds_by_role"][role] for summary in done.summaries.values())
                for role in ("analyst", "synthesizer")
            },
        },
        funnel=funnel,
        tokens={role: counts[f"{role}:generated_tokens"] for role in ("analyst", "synthesizer")},
        model=_model(done),
        figures=figures,
    )


def _model(done: UnitsReport) -> dict[str, Any]:
    """Which language model wrote, and on which engine; empty when none did."""
    found = [summary for summary in done.summaries.values() if "model" in summary]
    return {**found[0]["model"], "engine": found[0]["engine"]} if found else {}


def _figures(counts: collections.Counter[str]) -> dict[str, Any]:
    """What was counted beside the funnel: drops by reason, problems without contrast, costs."""

    def group(prefix: str) -> dict[str, int]:
        return {name.partition(":")[2]: counts[name] for name in sorted(counts) if name.startswith(f"{prefix}:")}

    explorer = {name: counts[name] for name in COSTS}
    writers = {role: {name: counts[f"{role}:{name}"] for name in COSTS} for role in ("analyst", "synthesizer")}
    spent = counts["generated_tokens"] + sum(cost["generated_tokens"] for cost in writers.values())
    claimed = counts["claimed_pivots"]
    return {
        "dropped": group("dropped"),
        "paths": group("paths"),
        "failure_types": group("failure"),
        "without_correct": counts["problems"] - counts["with_correct"],
        "without_wrong": counts["problems"] - counts["with_wrong"],
        "pairs": counts["pairs"],
        "lone_paths": counts["lone_paths"],
        "poor_form": counts["poor_form"],
        "problems_selected": counts["problems_selected"],
        "rejected_critiques": group("rejected"),
        "pivots_within_one": counts["pivots_within_one"] / claimed if claimed else None,
        "cost": {
            "explorer": explorer,
            **writers,
            "tokens_per_verified_chain": spent / counts["verified"] if counts["verified"] else None,
            "tokens_per_selected_chain": spent / counts["selected"] if counts["selected"] else None,
        },
    }


def _jsonl(chains: Iterable[Chain]) -> bytes:
    """Chains in the chat form that trainers load, one JSON object a line, with the lineage that a row needs."""
    lines = []
    for chain in chains:
        row = {"messages": [asdict(message) for message in chain.messages]}
        row |= {name: getattr(chain, name) for name in ("id", "problem_id", "task", "tree_id", "method", "contrast")}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def _tally(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(collections.Counter(values).items()))


def _digest(problems: Sequence[Problem]) -> str:
    return hashlib.sha256(json.dumps([[item.task, item.question] for item in problems]).encode()).hexdigest()[:16]
