"""The scripted engine: right and wrong chains by a hash, wherever a prompt breaks off."""

import asyncio
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.errors import EngineDied
from raylm.llm import models
from raylm.llm.chat import prompt_ids
from raylm.llm.config import EngineConfig
from raylm.llm.protocol import Sampling
from raylm.llm.scripted import ScriptedEngine

TOKENIZER = models.load_tokenizer(models.resolve("micro").path)


def engine(accuracy=1.0, **script):
    return ScriptedEngine(
        EngineConfig(kind="scripted", model="micro", script={"accuracy": accuracy, **script}), TOKENIZER
    )


def ask(question, accuracy=1.0, written="", **how):
    ids = prompt_ids(TOKENIZER, [{"role": "user", "content": question}])
    ids += TOKENIZER.encode(written, add_special_tokens=False)
    return asyncio.run(engine(accuracy).generate(ids, Sampling(**how))).completions


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("4 + 3 - 2", "4 + 3 = 7\n7 - 2 = 5\nAnswer: 5"),
        ("State the final answer to: 4 + 3 * 2 = ?", "3 * 2 = 6\n4 + 6 = 10\nAnswer: 10"),
        ("Calculate -4 - -3 .", "-4 - -3 = -1\nAnswer: -1"),
        ("8 / 2 / 4", "8 / 2 = 4\n4 / 4 = 1\nAnswer: 1"),
    ],
)
def test_an_accurate_policy_solves_the_last_question(question, text):
    assert [item.text for item in ask(question)] == [text]


def test_worked_examples_are_not_the_question():
    chat = [
        {"role": "user", "content": "9 + 9"},
        {"role": "assistant", "content": "Answer: 18"},
        {"role": "user", "content": "4 + 3"},
    ]
    answer = asyncio.run(engine().generate(prompt_ids(TOKENIZER, chat), Sampling()))
    assert answer.completions[0].text == "4 + 3 = 7\nAnswer: 7"


FULL = "4 + 3 = 7\n7 - 2 = 5\n5 * 3 = 15\nAnswer: 15"


@pytest.mark.parametrize("length", range(len(FULL) + 1))
def test_it_goes_on_wherever_the_prompt_breaks_off(length):
    written = "12 + 3 = 15\n15 - 2 = 13\n13 + 30 = 43\nAnswer: 43"[:length]
    whole = written + ask("12 + 3 - 2 + 30", written=written)[0].text
    # A result cut between its digits reads as a result, as it would to any reader of the line.
    assert re.fullmatch(r"12 \+ 3 = (\d+)\n\1 - 2 = (-?\d+)\n\2 \+ 30 = (\d+)\nAnswer: (\3|4)", whole)


def test_a_wrong_step_in_the_prompt_is_gone_on_from():
    assert ask("4 + 3 - 2", written="4 + 3 = 9\n")[0].text == "9 - 2 = 7\nAnswer: 7"


def test_accuracy_is_the_share_of_right_steps():
    texts = [item.text for item in ask("4 + 3", accuracy=0.6, n=2000, seed=1)]
    share = sum("4 + 3 = 7" in text for text in texts) / len(texts)
    assert abs(share - 0.6) < 0.04


def test_a_question_without_arithmetic_still_gets_an_answer():
    assert re.fullmatch(r"Answer: \d", ask("Why is the sky blue?")[0].text)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(0, 5), st.sampled_from([(), ("\n",), ("Answer",), ("= ", "\n")]))
def test_lengths_stops_and_logprobs_agree(max_tokens, seed, stop):
    for item in ask("14 + 3 - 2 + 8", 0.5, n=3, max_tokens=max_tokens, seed=seed, stop=stop, logprobs=True):
        assert len(item.token_ids) <= max_tokens
        assert len(item.logprobs) == len(item.token_ids)
        assert all(value <= 0 for value in item.logprobs)
        assert not any(string in item.text for string in stop)
        assert TOKENIZER.decode(item.token_ids).startswith(item.text)
        assert item.stop_string in (*stop, None)
        if item.finish_reason == "length":
            assert len(item.token_ids) == max_tokens


def test_it_dies_when_told_and_names_the_cause():
    async def run():
        mortal = engine(fail_after=2)
        await mortal.generate("1 + 1", Sampling())
        await mortal.generate("1 + 1", Sampling())
        with pytest.raises(EngineDied, match="fail_after=2"):
            await mortal.generate("1 + 1", Sampling())

    asyncio.run(run())


def test_cached_tokens_count_whole_shared_blocks():
    async def run():
        shared = list(range(3, 53))
        one = engine()
        return [
            (await one.generate(prompt, Sampling())).cached_tokens
            for prompt in (shared, shared, [*shared, 90, 91], [9, *shared])
        ]

    assert asyncio.run(run()) == [0, 48, 48, 0]


def test_totals_count_requests_tokens_and_busy_time():
    async def run():
        one = engine(latency=0.02)
        answers = await asyncio.gather(*(one.generate("4 + 3", Sampling(n=2)) for _ in range(3)))
        return answers, one.stats()

    answers, stats = asyncio.run(run())
    assert stats.requests == 3
    assert stats.prompt_tokens == 3 * answers[0].prompt_tokens
    assert stats.generated_tokens == sum(answer.generated_tokens for answer in answers)
    assert 0.02 <= stats.busy_seconds < 3 * 0.02 + 5
