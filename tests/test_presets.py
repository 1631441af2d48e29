"""Every preset under jobs/configs resolves, and no suite of one shares its sources' parts with the search."""

from pathlib import Path

import pytest

from raylm import config
from raylm.errors import UserError
from raylm.pipeline.config import PipelineConfig
from raylm.pipeline.run import check
from raylm.tasks.config import SourceConfig
from raylm.tasks.sources import load_problems

PRESETS = sorted((Path(__file__).parent.parent / "jobs" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_resolves_to_all_its_stages(path):
    resolved = config.load(PipelineConfig, [str(path)])
    stages = resolved.stage_configs()
    assert next(iter(stages)) == "evaluate_before"
    assert list(stages)[-1] == "evaluate_after"
    assert stages["finetune"].model == resolved.engine.model
    assert stages["synthesize"].evaluation == tuple(item for sources in resolved.suites.values() for item in sources)
    assert stages["evaluate_after"].model == f"{resolved.out}/finetune/model"
    assert {stage.seed for stage in stages.values()} == {resolved.seed}


def test_stage_fields_that_the_pipeline_sets_are_refused():
    source = {"name": "chain_sum", "limit": 2}
    data = {"suites": {"s": [source]}, "explore": {"problems": [source], "out": "x"}}
    with pytest.raises(Exception, match=r"explore\.out is set by the pipeline"):
        config.build(PipelineConfig, data)


def test_a_sections_own_compute_wins_over_the_shared_one():
    resolved = config.load(PipelineConfig, ["jobs/configs/micro.yaml", "explore.compute={in_flight: 3}"])
    stages = resolved.stage_configs()
    assert stages["explore"].compute.in_flight == 3
    assert stages["evaluate_before"].compute == stages["evaluate_after"].compute == resolved.compute


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"part": "train", "seed": 1}, r"suites\.s: \d+ questions are also in explore\.problems \('Calculate"),
        ({"part": "test"}, r"suites\.s: 1 questions are also in the examples of a prompt \(' CALCULATE"),
    ],
)
def test_an_evaluation_question_may_not_be_seen_before(changes, words):
    params = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 1, "allow_negation": False}
    source = {"name": "sums", "task": "basic_arithmetic", "limit": 30, "params": params}
    suite = {**source, "name": "suite", **changes}
    problem = load_problems([config.build(SourceConfig, suite)])[0]
    resolved = config.build(
        PipelineConfig,
        {
            "engine": {"model": "micro"},
            "suites": {"s": [suite]},
            "explore": {
                "problems": [{**source, "part": "train", "seed": 1}],
                "prompt": {"examples": [{"question": f" {problem.question.upper()}", "response": "7"}]},
            },
        },
    )
    with pytest.raises(UserError, match=words):
        check(resolved)
