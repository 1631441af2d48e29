"""The diagnose stage: models are asked on Ray Data actors, batch by batch and resumable; causes and a plan result."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from raylm.errors import UserError
from raylm.ilp import interventions, items, lineage, log, measure, outcome
from raylm.ilp.config import DiagnoseConfig
from raylm.ilp.items import Item
from raylm.ilp.log import Log
from raylm.ilp.measure import Encode, Sources
from raylm.llm import models
from raylm.storage import Manifest, StageRun
from raylm.train.data import file_digest
from raylm.train.repair import dump
from raylm.units import Unit, check_failures, read_unit, run_units

if TYPE_CHECKING:
    import numpy as np

PLAN, DOCUMENTS = "plan.json", "documents.jsonl"


def run(config: DiagnoseConfig) -> Manifest:
    """Diagnose; a second call with the same config and inputs returns at once, an interrupted run goes on.

    Raises:
        UserError: bad samples or log, a model that is not tuned from the base, or an out directory of another run.
        EngineDied: an engine died again and again.
    """
    from raylm import report

    rows, digest = items.read(config)
    tuned = models.resolve(config.model, None, config.trust_remote_code)
    base = models.resolve(config.base, config.revision, config.trust_remote_code)
    kin = lineage.compare(tuned.path, base.path)
    seen, log_digest = log.read(config.log) if config.log else (None, "")
    warnings = [text for text in (kin.warning, *_check_log(seen, rows, config)) if text]
    before = outcome.Before(config.before, rows) if config.before else None
    inputs = {"samples": digest, "model": tuned.ref.revision, "base": base.ref.revision, "log": log_digest}
    inputs |= {"before": before.digest} if before else {}
    given = {"corpus": config.repair.corpus, "general": config.repair.general, "text": config.repair.general_text}
    inputs |= {name: file_digest(path) for name, path in given.items() if path}
    stage = StageRun("diagnose", config, config.out, {name: value for name, value in inputs.items() if value})
    if stage.finished is None:
        for text in warnings:
            print(f"warning: {text}", file=sys.stderr)
        work = _Work(config, stage, str(tuned.path), str(base.path))
        work.run(rows, before, seen, warnings)
    report.for_stage("diagnose", stage.store)
    assert stage.finished is not None
    return stage.finished


class _Work:
    """One diagnosis on Ray."""

    def __init__(self, config: DiagnoseConfig, stage: StageRun, tuned: str, base: str) -> None:
        self.config, self.stage, self.tuned, self.base = config, stage, tuned, base
        self.seconds: dict[str, float] = {}
        self.tokens: dict[str, int] = {}
        self.encode = encoder(config.encoder)

    def run(
        self, rows: list[dict[str, Any]], before: outcome.Before | None, seen: Log | None, warnings: list[str]
    ) -> None:
        """Ask, attribute, plan, and write everything."""
        config, store = self.config, self.stage.store
        everyone, overlong = fitting(items.make(rows, config.probe), config, self.tuned)
        chosen = items.screen(everyone, config.sample, config.seed)
        sources = Sources(ask=self.ask, tuned=self.tuned, base=self.base, encode=self.encode, log=seen)
        found = measure.diagnose(everyone, chosen, config, sources)
        general = self._general()
        unaware = [item for item in found.items if _cause(found, item) == "prerequisite"]
        from raylm.ilp import documents

        writer = str(models.resolve(config.repair.writer).path) if config.repair.writer else ""
        texts, unverified = documents.gather(unaware, config, self.encode, self.ask, writer)
        plan = interventions.build(found, config.repair, self.stage.inputs["samples"], DOCUMENTS if texts else "")
        store.write_bytes(PLAN, dump(plan).encode())
        outcome.write_lines(store, DOCUMENTS, texts)
        exported = outcome.export(store, rows, {*found.ids("unlearned", "partial")}, _source(config))
        outcome.write_tables(store, found, seen)
        figures = outcome.figures(found, seen, config, before)
        warnings = [*warnings, *outcome.doubts(found)]
        figures |= {"overlong": overlong, "general": general, "warnings": warnings, "exported": exported}
        figures["plan"] = outcome.plan_counts(plan, len(texts), unverified)
        self.stage.finish(
            len(found.items),
            timing={"seconds": sum(self.seconds.values()), "seconds_by_question": self.seconds},
            model={"name": config.model, "base": config.base},
            tokens=self.tokens,
            funnel=outcome.funnel(found),
            figures=figures,
            folders=("data",),
            files=[PLAN, exported, *([DOCUMENTS] if texts else [])],
        )

    def ask(self, label: str, units: list[Unit], worker: Any, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of units that Ray Data actors did, or that an earlier run had done."""
        if not units:
            return []
        store, config = self.stage.store, self.config
        done = run_units(units, worker, arguments, store, config.compute, label=label, noun="batches")
        check_failures(done, len(units), 0.0, store, f"batches of {label}")
        self.seconds[label] = done.seconds
        self.tokens[label] = sum(summary["tokens"] for summary in done.summaries.values())
        return [row for unit in units if unit.key in done.summaries for row in read_unit(store, unit.key).to_pylist()]

    def _general(self) -> dict[str, float]:
        """Mean loss of both models on the general set, nats a token; empty without one."""
        if not self.config.repair.general:
            return {}
        from raylm.train.data import read_chains

        rows = read_chains(self.config.repair.general)[0]
        made, _ = fitting(items.make(rows, self.config.probe), self.config, self.tuned)
        found = {}
        for model, path in (("base", self.base), ("tuned", self.tuned)):
            scores = measure.scores(made, self.config, self.ask, path, model=model, of="general set: ")
            found[model] = sum(row["nll"] for row in scores.values()) / len(scores)
        return found


def fitting(made: list[Item], config: DiagnoseConfig, path: str) -> tuple[list[Item], int]:
    """Items no longer than `max_length`, and how many are longer.

    Raises:
        UserError: a question leaves no room for a response in the engine's context; or no item is left.
    """
    from raylm.llm.chat import prompt_ids, training_ids

    tokenizer = models.load_tokenizer(path, config.trust_remote_code)
    turns = [[*item.messages, {"role": "assistant", "content": item.answer}] for item in made]
    kept = [item for item, chat in zip(made, turns, strict=True)
            if len(training_ids(tokenizer, chat)[0]) <= config.max_length]  # fmt: skip
    if not kept:
        raise UserError(f"all {len(made)} samples are longer than max_length={config.max_length} tokens; raise it")
    longest = max(len(prompt_ids(tokenizer, item.messages)) for item in kept)
    if longest + config.probe.max_tokens > config.engine.context:
        raise UserError(
            f"the longest question has {longest} tokens, which leaves no room for probe.max_tokens="
            f"{config.probe.max_tokens} in engine.context={config.engine.context}; set engine.context="
            f"{longest + config.probe.max_tokens} or lower probe.max_tokens"
        )
    return kept, len(made) - len(kept)


def encoder(name: str) -> Encode:
    """A function from texts to vectors of length 1; the model is loaded at its first use."""
    held: list[Any] = []

    def encode(texts: list[str]) -> np.ndarray:
        from raylm.retrieval.encoder import Encoder

        if not held:
            held.append(Encoder.load(name))
        found: np.ndarray = held[0].encode(texts, "document")
        return found

    return encode


def _source(config: DiagnoseConfig) -> str:
    """Where the samples come from; of several sets, the first."""
    return config.tasks[0].chains if config.tasks else config.chains


def _cause(found: measure.Diagnosis, item: Item) -> str:
    given = found.causes.get(item.id)
    return given.cause if given else ""


def _check_log(seen: Log | None, rows: list[dict[str, Any]], config: DiagnoseConfig) -> list[str]:
    """Warnings about a log.

    Raises:
        UserError: it speaks of other samples.
    """
    if seen is None:
        return ["no log of the training is given: causes IV (forgotten) and V (underfit) cannot be assessed"]
    ids = {row["id"] for row in rows}
    known = len(ids & set(seen.paths))
    if not known:
        raise UserError(
            f"log={config.log}: none of its {len(seen.paths)} samples is among the {len(ids)} given (the log has ids "
            f"like {next(iter(seen.paths), '-')!r}, the samples like {next(iter(ids))!r}); give the samples that the "
            "model was trained on, with `tasks` as in training, or leave log empty"
        )
    warnings = []
    if known < len(ids):
        warnings.append(f"{len(ids) - known} of {len(ids)} samples are not in the log: IV and V are open for them")
    if seen.truncated:
        warnings.append(f"the log is truncated ({seen.truncated}): IV and V see only what it holds")
    return warnings
