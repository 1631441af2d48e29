"""The evaluate stage: every question of every suite once, on a pool of engines, resumable question by question."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raylm.errors import EngineDied, UserError
from raylm.evaluation.config import EvaluateConfig
from raylm.evaluation.score import check_same_questions, compare, score
from raylm.llm.protocol import Completion, Sampling
from raylm.records import Judgement, Problem, from_table, to_table
from raylm.seeds import stable_seed
from raylm.storage import Manifest, StageRun, Store
from raylm.units import Unit, UnitsReport, check_failures, finished_keys, read_unit, run_units, unit_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raylm.llm.protocol import Engine
    from raylm.tasks.verify import Verification, VerifierPool

Suites = dict[str, list[Problem]]


def run(config: EvaluateConfig) -> Manifest:
    """Evaluate one model; a second call with the same config and inputs returns at once.

    Raises:
        UserError: bad input, or more questions than `max_failed_share` ended in an error.
        EngineDied: the engine died again and again.
    """
    from raylm import report
    from raylm.llm import models

    problems = load_suites(config)
    baseline = _Baseline(config.baseline) if config.baseline else None
    engine = config.resolved_engine()
    model = models.resolve(engine.model, engine.revision, engine.trust_remote_code)
    inputs = {"problems": _digest(problems), "model": model.ref.revision}
    if baseline:
        check_same_questions(baseline.store, baseline.rows, problems)
        inputs["baseline"] = baseline.digest
    stage = StageRun("evaluate", config, config.out, inputs)
    if stage.finished is None:
        check_prompts(config, problems, models.load_tokenizer(model.path, engine.trust_remote_code))
        units = [_unit(config, suite, item) for suite, items in problems.items() for item in items]
        resumed = finished_keys(stage.store)
        done = run_units(
            units,
            EvaluateWorker,
            {"config": config},
            stage.store,
            config.compute,
            label="evaluate",
            noun="questions",
            note=_running_accuracy(),
        )
        check_failures(done, len(units), config.max_failed_share, stage.store, "questions")
        _finish(stage, config, units, done, resumed=resumed, baseline=baseline)
    report.for_stage("evaluate", stage.store, {"baseline": baseline.store} if baseline else None)
    assert stage.finished is not None
    return stage.finished


class EvaluateWorker:
    """Answers and checks questions; one engine and one verifier pool an actor."""

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        self.engine: Engine | None = None
        self.verifier: VerifierPool | None = None

    async def start(self) -> None:
        """Load the model and start the verifier's processes."""
        from raylm.llm import engine
        from raylm.tasks.verify import VerifierPool

        compute = self.config.compute
        self.engine = await engine.build(self.config.resolved_engine(), cpus=compute.cpus, gpus=compute.gpus)
        self.verifier = self.verifier or VerifierPool(self.config.verifier)

    async def run(self, unit: Unit, store: Store) -> tuple[pa.Table, dict[str, Any]]:
        """Answer one question `samples` times; one Judgement a response, the greedy one first."""
        from raylm.llm.chat import prompt_ids

        engine, verifier = self.engine, self.verifier
        if engine is None or verifier is None:
            raise EngineDied("the engine is being started again")
        problem, suite = Problem(**unit.payload["problem"]), unit.payload["suite"]
        prompt = prompt_ids(engine.tokenizer, self.config.prompt.messages(problem.question))
        requests = [engine.generate(prompt, sampling) for sampling in samplings(self.config, suite, problem.id)]
        generations = await asyncio.gather(*requests)
        completions = [completion for generation in generations for completion in generation.completions]
        verdicts = await asyncio.gather(*(verifier.verify(problem, item.text) for item in completions))
        rows = [
            _judgement(unit, len(prompt), index, completion, verdict)
            for index, (completion, verdict) in enumerate(zip(completions, verdicts, strict=True))
        ]
        summary = {
            "model": asdict(engine.model),
            "engine": engine.name,
            "correct": rows[0].verdict == "correct",
            "unverifiable": [verdict.reason for verdict in verdicts if verdict.verdict == "unverifiable"],
            "prompt_tokens": sum(generation.prompt_tokens for generation in generations),
            "cached_tokens": sum(generation.cached_tokens for generation in generations),
            "generated_tokens": sum(generation.generated_tokens for generation in generations),
        }
        return to_table(Judgement, rows), summary

    async def close(self) -> None:
        """Free the model. The verifier stays: other questions may be waiting for verdicts, which must not change."""
        engine, self.engine = self.engine, None
        if engine is not None:
            await engine.close()


def load_suites(config: EvaluateConfig) -> Suites:
    """The problems of every suite.

    Raises:
        UserError: there is no suite, a source cannot be read, or a problem id is used twice in a suite.
    """
    from raylm.tasks.sources import load_problems

    if not config.suites:
        raise UserError("suites is empty: name at least one suite of problem sources to evaluate on")
    return {suite: load_problems(sources) for suite, sources in config.suites.items()}


def check_prompts(config: EvaluateConfig, problems: Suites, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse questions that leave no room for a whole response.

    Raises:
        UserError: names the first such question and what would make room.
    """
    from raylm.llm.chat import prompt_ids

    room = config.engine.context - config.max_tokens
    lengths = {
        (suite, item.id): len(prompt_ids(tokenizer, config.prompt.messages(item.question)))
        for suite, items in problems.items()
        for item in items
    }
    too_long = [key for key, length in lengths.items() if length > room]
    if too_long:
        suite, problem_id = too_long[0]
        raise UserError(
            f"{len(too_long)} of {len(lengths)} prompts leave no room for max_tokens={config.max_tokens} in "
            f"engine.context={config.engine.context}; first: suites.{suite} problem {problem_id} with "
            f"{lengths[too_long[0]]} tokens (set engine.context={max(lengths.values()) + config.max_tokens}, lower "
            "max_tokens, or take shorter examples)"
        )


def samplings(config: EvaluateConfig, suite: str, problem_id: str) -> list[Sampling]:
    """The requests for one question: a greedy one, and one for all other samples."""
    seed = stable_seed(config.seed, "evaluate", suite, problem_id)
    requests = [Sampling(n=1, temperature=0.0, max_tokens=config.max_tokens, seed=seed)]
    if config.samples > 1:
        more = Sampling(
            n=config.samples - 1,
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=config.max_tokens,
            seed=seed,
        )
        requests.append(more)
    return requests


class _Baseline:
    """The rows and identity of the evaluation to compare with."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        manifest = self.store.manifest()
        if manifest is None:
            raise UserError(f"baseline {url}: no finished evaluation here (manifest.json is missing); run it first")
        if manifest.stage != "evaluate":
            raise UserError(f"baseline {url}: this is the artefact of {manifest.stage}, not of evaluate")
        self.digest = manifest.digest()
        self.rows = from_table(Judgement, self.store.read_data())


def _finish(
    stage: StageRun,
    config: EvaluateConfig,
    units: list[Unit],
    done: UnitsReport,
    *,
    resumed: set[str],
    baseline: _Baseline | None,
) -> None:
    finished = [unit for unit in units if unit.key in done.summaries]
    tables = [read_unit(stage.store, unit.key) for unit in finished]
    rows = [row for table in tables for row in from_table(Judgement, table)]
    suites = score(rows)
    figures: dict[str, Any] = {"suites": suites}
    if baseline:
        figures["comparison"] = compare(baseline.rows, rows, config.resamples, config.seed)
    if done.failed:
        figures["failed"] = [[u.payload["suite"], u.payload["problem"]["id"]] for u in units if u.key in done.failed]
    summaries = [done.summaries[unit.key] for unit in finished]
    engines = sorted({summary["engine"] for summary in summaries})
    stage.finish(
        stage.write_rows(tables),
        timing=_timing(done, [done.summaries[unit.key] for unit in finished if unit.key not in resumed]),
        model={**(summaries[0]["model"] if summaries else {}), "engine": "+".join(engines)},
        tokens={kind: sum(item[f"{kind}_tokens"] for item in suites.values()) for kind in ("prompt", "generated")},
        figures=figures,
    )


def _timing(done: UnitsReport, new: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Wall-clock facts; rates are over the questions that this run finished, starts of engines included."""
    seconds = done.seconds or float("inf")
    prompt, cached, generated = (
        sum(summary[name] for summary in new) for name in ("prompt_tokens", "cached_tokens", "generated_tokens")
    )
    return {
        "seconds": done.seconds,
        "resumed": done.resumed,
        "questions_per_second": len(new) / seconds,
        "tokens_per_second": generated / seconds,
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "generated_tokens": generated,
        "unverifiable": Counter(reason for item in done.summaries.values() for reason in item["unverifiable"]),
        "unit_seconds": {key: summary["seconds"] for key, summary in done.summaries.items()},
    }


def _unit(config: EvaluateConfig, suite: str, problem: Problem) -> Unit:
    return Unit(unit_key("evaluate", config.seed, suite, problem.id), {"suite": suite, "problem": asdict(problem)})


def _judgement(
    unit: Unit, prompt_tokens: int, sample: int, completion: Completion, verification: Verification
) -> Judgement:
    problem = Problem(**unit.payload["problem"])
    return Judgement(
        suite=unit.payload["suite"],
        problem_id=problem.id,
        task=problem.task,
        question=problem.question,
        gold=problem.answer,
        response=completion.text,
        answer=verification.answer,
        verdict=verification.verdict,
        prompt_tokens=prompt_tokens,
        generated_tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason,
        sample=sample,
    )


def _running_accuracy() -> Callable[[dict[str, Any]], str]:
    """The share of correct greedy responses so far, for the progress line."""
    seen = right = 0

    def note(summary: dict[str, Any]) -> str:
        nonlocal seen, right
        seen, right = seen + 1, right + int(summary["correct"])
        return f"{right / seen:.1%} correct"

    return note


def _digest(problems: Suites) -> str:
    """Hash of what is asked and how it is checked; where a question was read from does not count."""
    facts = [
        [suite, item.id, item.task, item.question, item.answer, item.checker]
        for suite, items in problems.items()
        for item in items
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
