"""The explore stage: one tree a problem, on a pool of engines, resumable round by round."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raylm import telemetry
from raylm.errors import UserError
from raylm.records import Problem, Tree, to_table
from raylm.search.config import ExploreConfig
from raylm.search.explorer import grow
from raylm.search.growth import Growth, tree_id
from raylm.search.totals import Totals, ratio
from raylm.search.value import Scorer
from raylm.storage import Manifest, StageRun, Store
from raylm.units import (
    SNAPSHOTS,
    Unit,
    UnitsReport,
    check_failures,
    finished_keys,
    read_unit,
    run_units,
    snapshot_name,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raylm.llm.protocol import Engine
    from raylm.tasks.verify import VerifierPool


def run(config: ExploreConfig) -> Manifest:
    """Grow every problem's tree; a second call with the same config and inputs returns at once.

    Raises:
        UserError: bad input, or more trees than `max_failed_share` ended in an error.
        EngineDied: the engine died again and again.
    """
    from raylm import report
    from raylm.llm import models, reward
    from raylm.tasks.sources import load_problems

    problems = load_problems(config.problems)
    model = models.resolve(config.engine.model, config.engine.revision, config.engine.trust_remote_code)
    inputs = {"problems": _digest(problems), "model": model.ref.revision}
    if config.search.value.model and not reward.is_address(config.search.value.model):
        find = models.resolve_encoder if reward.is_structural(config.search.value.model) else models.resolve
        inputs["reward_model"] = find(config.search.value.model).ref.revision
    stage = StageRun("explore", config, config.out, inputs)
    if stage.finished is None:
        check_prompts(config, problems, models.load_tokenizer(model.path, config.engine.trust_remote_code))
        units = [Unit(tree_id(config, item.id, config.seed), {"problem": asdict(item)}) for item in problems]
        resumed = finished_keys(stage.store)
        done = run_units(
            units,
            ExploreWorker,
            {"config": config},
            stage.store,
            config.compute,
            label="explore",
            noun="trees",
            note=_running_note(),
        )
        check_failures(done, len(units), config.max_failed_share, stage.store, "trees")
        _finish(stage, units, done, resumed)
    report.for_stage("explore", stage.store)
    assert stage.finished is not None
    return stage.finished


class ExploreWorker:
    """Grows trees; one engine and one verifier pool an actor."""

    def __init__(self, config: ExploreConfig) -> None:
        self.config = config
        self.engine: Engine | None = None
        self.scorer: Scorer | None = None
        self.verifier: VerifierPool | None = None

    async def start(self) -> None:
        """Load the models, and make the verifier unless an earlier start did."""
        from raylm.llm import engine, reward
        from raylm.tasks.verify import VerifierPool

        compute = self.config.compute
        self.engine = await engine.build(self.config.engine, cpus=compute.cpus, gpus=compute.gpus)
        if self.config.search.value.model:
            self.scorer = await reward.build(self.config.search.value.model, cpus=compute.cpus, gpus=compute.gpus)
        self.verifier = self.verifier or VerifierPool(self.config.verifier)

    async def run(self, unit: Unit, store: Store) -> tuple[pa.Table, dict[str, Any]]:
        """Grow one tree, from its snapshot when an earlier attempt left one."""
        # This start's engine: another unit may find it dead and replace it while this one still waits for it.
        engine, verifier = self.engine, self.verifier
        assert engine is not None
        assert verifier is not None
        name = snapshot_name(unit.key)
        snapshot = await asyncio.to_thread(store.read_json, name) if store.exists(name) else None
        last = Growth.restore(self.config, snapshot)
        before = last.prompt_tokens, last.generated_tokens

        async def save(growth: Growth) -> None:
            nonlocal last
            last = growth
            data = json.dumps(growth.snapshot(), separators=(",", ":")).encode()
            await asyncio.to_thread(store.write_bytes, name, data)

        problem = Problem(**unit.payload["problem"])
        tree = await grow(
            problem,
            engine,
            verifier,
            self.config,
            self.config.seed,
            scorer=self.scorer,
            snapshot=snapshot,
            on_round=save,
        )
        telemetry.count("raylm_trees")
        telemetry.count("raylm_nodes", len(tree.nodes))
        verdicts = [found.verdict for found in tree.trajectories]
        summary = {
            "model": asdict(engine.model),
            "engine": engine.name,
            "correct": verdicts.count("correct"),
            "wrong": verdicts.count("wrong"),
            "prompt_tokens": tree.prompt_tokens - before[0],
            "cached_tokens": last.cached_tokens,
            "generated_tokens": tree.generated_tokens - before[1],
        }
        return to_table(Tree, [tree]), summary

    async def close(self) -> None:
        """Free the model. The verifier stays: other trees may be waiting for verdicts, which must not change."""
        engine, self.engine = self.engine, None
        if engine is not None:
            await engine.close()


def check_prompts(config: ExploreConfig, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse questions that leave no room for a whole response.

    Raises:
        UserError: names the first such problem and what would make room.
    """
    from raylm.llm.chat import prompt_ids

    room = config.engine.context - config.search.max_tokens
    lengths = [len(prompt_ids(tokenizer, config.prompt.messages(problem.question))) for problem in problems]
    too_long = [(problem, length) for problem, length in zip(problems, lengths, strict=True) if length > room]
    if too_long:
        problem, length = too_long[0]
        needed, given = max(lengths) + config.search.max_tokens, config.engine.context
        raise UserError(
            f"{len(too_long)} of {len(problems)} prompts leave no room in engine.context={given} for "
            f"search.max_tokens={config.search.max_tokens}; first: problem {problem.id} with {length} tokens "
            f"(set engine.context={needed}, lower search.max_tokens, or take shorter examples)"
        )


def _finish(stage: StageRun, units: Sequence[Unit], done: UnitsReport, resumed: set[str]) -> None:
    finished = [unit for unit in units if unit.key in done.summaries]
    totals = Totals()
    rows = stage.write_rows(totals.watch(read_unit(stage.store, unit.key) for unit in finished))
    figures = totals.figures()
    if done.failed:
        figures["failed"] = [unit.payload["problem"]["id"] for unit in units if unit.key in done.failed]
    summaries = [done.summaries[unit.key] for unit in finished]
    engines = sorted({summary["engine"] for summary in summaries})
    stage.finish(
        rows,
        timing=_timing(done, [done.summaries[unit.key] for unit in finished if unit.key not in resumed]),
        model={**(summaries[0]["model"] if summaries else {}), "engine": "+".join(engines)},
        funnel={
            "problems": len(units),
            "searched": totals.trees,
            "with_trajectory": totals.with_trajectory,
            "with_correct": totals.with_correct,
            "with_both": totals.with_both,
        },
        tokens={"prompt": totals.prompt_tokens, "generated": totals.generated_tokens},
        figures=figures,
    )
    stage.store.remove(SNAPSHOTS)


def _timing(done: UnitsReport, new: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Wall-clock facts; rates are over the trees that this run finished, starts of engines included."""
    prompt, cached, generated = (
        sum(summary[name] for summary in new) for name in ("prompt_tokens", "cached_tokens", "generated_tokens")
    )
    return {
        "seconds": done.seconds,
        "resumed": done.resumed,
        "trees_per_second": ratio(len(new), done.seconds),
        "tokens_per_second": ratio(generated, done.seconds),
        "generated_tokens": generated,
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "prefix_hit_rate": ratio(cached, prompt),
        "unit_seconds": {key: summary["seconds"] for key, summary in done.summaries.items()},
    }


def _running_note() -> Callable[[dict[str, Any]], str]:
    """Share of trees with a correct response and tokens a second so far, for the progress line."""
    start, trees, solved, tokens = time.monotonic(), 0, 0, 0

    def note(summary: dict[str, Any]) -> str:
        nonlocal trees, solved, tokens
        trees, solved = trees + 1, solved + bool(summary["correct"])
        tokens += summary["generated_tokens"]
        return f"{solved / trees:.0%} solved, {tokens / max(time.monotonic() - start, 1e-9):,.0f} tokens/s"

    return note


def _digest(problems: Sequence[Problem]) -> str:
    return hashlib.sha256(json.dumps([asdict(item) for item in problems]).encode()).hexdigest()[:16]
