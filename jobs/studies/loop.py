"""Run a pipeline config as a study and write down what the loop gained.

    python -m jobs.studies.loop NAME CONFIG [key=value ...]

The result is studies/results/NAME.json with the judgements of every question beside it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import Any

from jobs import results
from raylm import config
from raylm.pipeline.config import PipelineConfig
from raylm.pipeline.run import run
from raylm.records import Judgement, from_table
from raylm.storage import TIMING, Store


def main(name: str, args: list[str]) -> None:
    """Run, read the artefacts, write the result."""
    resolved = config.load(PipelineConfig, args)
    start = time.monotonic()
    run(resolved)
    wall = time.monotonic() - start
    stages = {stage: Store(getattr(item, "out")) for stage, item in resolved.stage_configs().items()}  # noqa: B009
    figures, intervals = summarise(stages)
    raw = [
        {"stage": stage, **asdict(row)}
        for stage, store in stages.items()
        if stage.startswith("evaluate")
        for row in from_table(Judgement, store.read_data())
    ]
    figures["wall_seconds"] = round(wall, 1)
    print(results.write(f"studies/results/{name}", figures, raw, intervals=intervals, seeds=[resolved.seed]))


def summarise(stages: dict[str, Store]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Headline figures and intervals from the stages' manifests; the unsuffixed ones are those of the first suite."""
    figures: dict[str, Any] = {}
    intervals: dict[str, list[float]] = {}
    manifests = {stage: store.manifest() for stage, store in stages.items()}
    for stage, manifest in manifests.items():
        assert manifest is not None
        if not stage.startswith("evaluate"):
            continue
        label = stage.removeprefix("evaluate_")
        for index, (suite, item) in enumerate(manifest.figures["suites"].items()):
            for key in [f"accuracy_{label}_{suite}"] + ([f"accuracy_{label}"] if index == 0 else []):
                figures[key], intervals[key] = item["accuracy"], item["interval"]
            figures[f"questions_{suite}"] = item["questions"]
    after = manifests["evaluate_after"]
    assert after is not None
    for index, (suite, item) in enumerate(after.figures["comparison"].items()):
        for suffix in [f"_{suite}"] + ([""] if index == 0 else []):
            figures[f"gain{suffix}"], intervals[f"gain{suffix}"] = item["difference"], item["interval"]
            figures[f"p_value{suffix}"] = item["p_value"]
    explore, synthesize = manifests["explore"], manifests["synthesize"]
    assert explore is not None
    assert synthesize is not None
    figures |= {"problems": explore.funnel["problems"], "funnel": {**explore.funnel, **synthesize.funnel}}
    figures["chains"] = synthesize.rows
    figures["seconds"] = {
        stage: round(store.read_json(TIMING).get("seconds", 0.0), 1) for stage, store in stages.items()
    }
    figures["tokens"] = {stage: manifest.tokens for stage, manifest in manifests.items() if manifest}
    return figures, intervals


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
