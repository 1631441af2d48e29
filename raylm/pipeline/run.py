"""Run every stage in order, skip what is done, and tell the story on one screen."""

from __future__ import annotations

import importlib
import sys

from raylm.config import Config
from raylm.errors import UserError
from raylm.pipeline.config import PipelineConfig
from raylm.progress import format_seconds
from raylm.storage import TIMING, Manifest, StageRun, Store

_RUNNERS = {
    "evaluate_before": "raylm.evaluation.run",
    "evaluate_prompted": "raylm.evaluation.run",
    "explore": "raylm.search.explore",
    "synthesize": "raylm.crps.run",
    "finetune": "raylm.train.sft",
    "evaluate_after": "raylm.evaluation.run",
}


def run(config: PipelineConfig) -> Manifest:
    """Run the whole loop; a second call with the same config only prints the summary.

    Raises:
        UserError: bad input, found before the first stage where it can be.
    """
    from raylm import report

    claim = StageRun("pipeline", config, config.out)
    stages = config.stage_configs()
    if claim.finished is None:
        check(config)
    manifests: dict[str, Manifest] = {}
    for number, (name, stage) in enumerate(stages.items(), start=1):
        manifests[name] = _run_stage(name, stage, f"[{number}/{len(stages)}]")
    manifest = claim.finished or claim.finish(
        rows=0,
        timing={name: Store(f"{config.out}/{name}").read_json(TIMING) for name in stages},
        figures={"stages": {name: manifest.digest() for name, manifest in manifests.items()}},
        model=manifests["finetune"].model,
    )
    report.pipeline(config.out, list(stages))
    return manifest


def check(config: PipelineConfig) -> None:
    """Everything that can be known to be wrong before hours of work.

    Raises:
        UserError: a source cannot be read, a model cannot be loaded, or an evaluation question is also a training
            question or a worked example of a prompt.
    """
    from raylm.llm import models
    from raylm.records import Problem
    from raylm.tasks.sources import load_problems, overlap, short

    for engine in filter(None, (config.engine, config.explorer)):
        models.resolve(engine.model, engine.revision, engine.trust_remote_code)
    train = load_problems(config.explore.problems)
    examples = [*config.prompt.examples, *config.explore.prompt.examples]
    shown = [Problem("example", "prompt", item.question, "") for item in examples]
    for suite, sources in config.suites.items():
        problems = load_problems(sources)
        for where, known in (("explore.problems", train), ("the examples of a prompt", shown)):
            shared = overlap(known, problems)
            if shared:
                listed = "; ".join(repr(short(item.question)) for item in shared[:3])
                raise UserError(
                    f"suites.{suite}: {len(shared)} questions are also in {where} ({listed}); "
                    "use other seeds, offsets or splits"
                )


def _run_stage(name: str, stage: Config, place: str) -> Manifest:
    store = Store(getattr(stage, "out"))  # noqa: B009 - every stage config has `out`
    done = store.manifest() is not None
    print(f"{place} {name}{': done before, skipped' if done else ''}", file=sys.stderr, flush=True)
    manifest = importlib.import_module(_RUNNERS[name]).run(stage)
    if not done:
        seconds = store.read_json(TIMING).get("seconds", 0.0)
        print(f"{place} {name} finished in {format_seconds(seconds)}", file=sys.stderr, flush=True)
    return manifest
