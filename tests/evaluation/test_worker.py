"""What an actor does with one question, without Ray."""

import asyncio
import json
from dataclasses import asdict

import pytest

from raylm.config import build, config_hash
from raylm.errors import EngineDied, UserError
from raylm.evaluation.config import EvaluateConfig
from raylm.evaluation.run import EvaluateWorker, check_prompts, load_suites, samplings
from raylm.records import Judgement, Problem, from_table
from raylm.storage import Store
from raylm.units import Unit

PROBLEM = Problem("p1", "sums", "What is 3 + 4 - 2?", "5", "number")


def config(**changes):
    engine = {"kind": "scripted", "model": "micro", "script": changes.pop("script", {"accuracy": 1.0})}
    return build(EvaluateConfig, {"engine": engine, "max_tokens": 100, **changes})


def answer(settings, problem=PROBLEM, suite="in_domain"):
    async def main():
        worker = EvaluateWorker(settings)
        await worker.start()
        try:
            unit = Unit("k", json.loads(json.dumps({"suite": suite, "problem": asdict(problem)})))
            return await worker.run(unit, Store("unused"))
        finally:
            await worker.close()

    table, summary = asyncio.run(main())
    return from_table(Judgement, table), summary


def test_one_question_becomes_its_judgements():
    rows, summary = answer(config(samples=3))
    assert [row.sample for row in rows] == [0, 1, 2]
    assert rows[0].response.endswith("Answer: 5")
    assert {(row.answer, row.verdict, row.gold, row.suite) for row in rows} == {("5", "correct", "5", "in_domain")}
    assert summary["correct"]
    assert summary["prompt_tokens"] == 2 * rows[0].prompt_tokens
    assert summary["generated_tokens"] == sum(row.generated_tokens for row in rows)
    assert json.loads(json.dumps(summary)) == summary


def test_the_greedy_response_does_not_depend_on_the_other_samples():
    shaky = {"accuracy": 0.3}
    alone, _ = answer(config(script=shaky))
    crowd, _ = answer(config(script=shaky, samples=5, seed=9, temperature=1.2))
    assert alone[0] == crowd[0]
    assert len({row.response for row in crowd}) > 1


def test_a_response_that_runs_out_of_tokens_is_unfinished():
    rows, _ = answer(config(max_tokens=4))
    assert rows[0].finish_reason == "length"
    assert rows[0].generated_tokens == 4
    assert rows[0].verdict == "wrong"


def test_the_gold_answer_stays_out_of_the_prompt():
    marked, _ = answer(config(), Problem("p1", "sums", "What is 3 + 4 - 2?", "31337", "number"))
    plain, _ = answer(config())
    assert marked[0].prompt_tokens == plain[0].prompt_tokens
    assert marked[0].response == plain[0].response
    assert marked[0].verdict == "wrong"


def test_a_worker_between_two_starts_asks_to_be_tried_again():
    worker = EvaluateWorker(config())
    with pytest.raises(EngineDied, match="started again"):
        asyncio.run(worker.run(Unit("k", {"suite": "s", "problem": asdict(PROBLEM)}), Store("unused")))


def test_requests_are_greedy_first_and_seeded_by_question():
    greedy, rest = samplings(config(samples=4, seed=1), "in", "p1")
    assert (greedy.n, greedy.temperature) == (1, 0.0)
    assert (rest.n, rest.temperature, rest.max_tokens) == (3, 0.7, 100)
    seeds = {samplings(config(samples=2, seed=seed), suite, problem)[1].seed
             for seed in (0, 1) for suite in ("in", "out") for problem in ("p1", "p2")}  # fmt: skip
    assert len(seeds) == 8
    assert len(samplings(config(), "in", "p1")) == 1


def test_prompts_without_room_are_named(tmp_path):
    from raylm.llm import models

    tokenizer = models.load_tokenizer(models.resolve("micro").path)
    check_prompts(config(), {"in": [PROBLEM]}, tokenizer)
    long = Problem("p2", "sums", "x" * 2000, "5", "number")
    with pytest.raises(
        UserError, match=r"1 of 2 prompts leave no room .* suites\.in problem p2 .*set engine\.context="
    ):
        check_prompts(config(), {"in": [PROBLEM, long]}, tokenizer)


def test_suites_are_loaded_in_order_and_required():
    source = {"name": "chain_sum", "limit": 3}
    loaded = load_suites(config(suites={"z": (source,), "a": ({**source, "name": "other", "task": "chain_sum"},)}))
    assert [(suite, len(problems)) for suite, problems in loaded.items()] == [("z", 3), ("a", 3)]
    with pytest.raises(UserError, match="suites is empty"):
        load_suites(config())


def test_where_a_model_lies_is_not_part_of_the_identity():
    assert config_hash(config(model="here")) == config_hash(config(model="there", out="elsewhere", baseline="x"))
    assert config_hash(config(samples=2)) != config_hash(config(samples=3))
