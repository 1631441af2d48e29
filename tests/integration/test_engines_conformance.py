"""What every engine must do, on the micro model: one suite for the scripted engine, transformers and vLLM."""

import asyncio
import json
import os
import signal
import time

import pytest
import torch

from raylm.errors import EngineDied, PromptTooLong, UserError
from raylm.llm import engine as engines
from raylm.llm import models
from raylm.llm.chat import prompt_ids
from raylm.llm.config import EngineConfig
from raylm.llm.protocol import Engine, Sampling

CONTEXT = 640
KINDS = ("scripted", "transformers", "vllm")


def settings(kind, **changes):
    script = {"accuracy": 0.5, "latency": 0.05}
    return EngineConfig(
        kind=kind, model="micro", context=CONTEXT, max_in_flight=16, kv_cache_gib=1.0, script=script, **changes
    )


class Harness:
    """An engine and the event loop that it belongs to."""

    def __init__(self, kind):
        self.kind, self.loop = kind, asyncio.new_event_loop()
        self.engine = self.run(engines.build(settings(kind)))

    def run(self, awaitable):
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, 300))

    def ask(self, prompt, **how):
        return self.run(self.engine.generate(prompt, Sampling(**how)))

    def ask_all(self, prompts, **how):
        async def together():
            return await asyncio.gather(*(self.engine.generate(prompt, Sampling(**how)) for prompt in prompts))

        return self.run(together())


@pytest.fixture(scope="module")
def harnesses():
    """Engines by kind, each started once: vLLM takes half a minute."""
    made = {}
    yield lambda kind: made.get(kind) or made.setdefault(kind, Harness(kind))
    for item in made.values():
        item.run(item.engine.close())
        item.loop.close()


@pytest.fixture(params=KINDS)
def harness(harnesses, request):
    return harnesses(request.param)


@pytest.fixture(scope="module")
def reference():
    """The micro model as transformers runs it."""
    return models.load_model(models.resolve("micro").path, torch.float32).eval()


def chat(harness, number=0):
    question = f"Calculate {number} + 12 - 5 + 30 - 4 + 61 - 17 ."
    return prompt_ids(harness.engine.tokenizer, [{"role": "user", "content": question}])


def essence(generation):
    return [(item.text, item.token_ids, item.finish_reason) for item in generation.completions]


def test_it_is_an_engine_that_says_what_it_runs(harness):
    assert isinstance(harness.engine, Engine)
    assert harness.engine.name == harness.kind
    assert harness.engine.context_length == CONTEXT
    assert harness.engine.model.name
    assert harness.engine.model.revision


def test_samples_differ_and_their_text_is_their_tokens(harness):
    answer = harness.ask(chat(harness), n=4, temperature=1.0, max_tokens=24)
    assert len(answer.completions) == 4
    assert len({item.text for item in answer.completions}) > 1
    assert answer.generated_tokens == sum(len(item.token_ids) for item in answer.completions)
    for item in answer.completions:
        assert harness.engine.tokenizer.decode(item.token_ids, skip_special_tokens=True) == item.text


def test_equal_seeds_give_equal_samples_and_others_do_not(harness):
    how = {"n": 3, "temperature": 1.0, "max_tokens": 24}
    first = harness.ask(chat(harness), seed=5, **how)
    assert essence(harness.ask(chat(harness), seed=5, **how)) == essence(first)
    assert essence(harness.ask(chat(harness), seed=6, **how)) != essence(first)


def test_a_sample_does_not_depend_on_how_many_are_asked_for(harness):
    how = {"temperature": 1.0, "max_tokens": 24, "seed": 3}
    many, one = harness.ask(chat(harness), n=4, **how), harness.ask(chat(harness), n=1, **how)
    assert essence(many)[0] == essence(one)[0]


def test_a_request_is_answered_alike_alone_and_in_company(harness):
    prompts = [chat(harness, number) for number in range(12)]
    how = {"n": 2, "temperature": 1.0, "max_tokens": 20, "seed": 7}
    together = harness.ask_all(prompts, **how)
    alone = [harness.ask(prompt, **how) for prompt in prompts]
    assert [essence(answer) for answer in together] == [essence(answer) for answer in alone]


def test_a_stop_string_ends_the_text_before_it(harness):
    how = {"temperature": 1.0, "max_tokens": 60, "seed": 11}
    full = harness.ask(chat(harness), **how).completions[0]
    stop = next(char for char in full.text[5:] if char.isascii())
    cut = harness.ask(chat(harness), stop=(stop, "never to be seen"), **how).completions[0]
    assert cut.text == full.text[: full.text.index(stop)]
    assert (cut.finish_reason, cut.stop_string) == ("stop", stop)
    assert full.token_ids[: len(cut.token_ids)] == cut.token_ids


def test_the_longest_answer_is_max_tokens(harness):
    for item in harness.ask(chat(harness), n=4, temperature=1.0, max_tokens=5).completions:
        assert len(item.token_ids) == 5 or item.finish_reason == "stop"
        assert len(item.token_ids) <= 5
    assert any(item.finish_reason == "length" for item in harness.ask(chat(harness), n=8, max_tokens=2).completions)


def test_the_context_ends_an_answer_too(harness):
    tail = chat(harness)
    prompt = [40] * (CONTEXT - 3 - len(tail)) + tail
    item = harness.ask(prompt, max_tokens=50).completions[0]
    assert len(item.token_ids) <= 3
    assert item.finish_reason == ("length" if len(item.token_ids) == 3 else "stop")


def test_a_prompt_that_fills_the_context_is_refused(harness):
    with pytest.raises(PromptTooLong, match=f"{CONTEXT} tokens leaves no room in a context of {CONTEXT}"):
        harness.ask([40] * CONTEXT)


@pytest.mark.parametrize(
    ("prompt", "how", "message"),
    [
        ([], {}, "prompt is empty"),
        ("", {}, "prompt is empty"),
        ([5, 100_000], {}, "token id 100000"),
        ([5], {"n": 0}, "start at 1"),
        ([5], {"stop": ("",)}, "empty stop"),
    ],
)
def test_a_senseless_request_is_a_users_error_and_harms_no_other(harness, prompt, how, message):
    with pytest.raises(UserError, match=message):
        harness.ask(prompt, **how)
    assert harness.ask([5, 6], max_tokens=2).completions


def test_text_is_tokenized_as_it_is(harness):
    ids = chat(harness)
    text = harness.engine.tokenizer.decode(ids)
    how = {"temperature": 1.0, "max_tokens": 16, "seed": 2}
    assert essence(harness.ask(text, **how)) == essence(harness.ask(ids, **how))
    assert harness.ask(text, **how).prompt_tokens == len(ids)


def test_log_probabilities_come_with_the_tokens_when_asked_for(harness):
    how = {"n": 2, "temperature": 1.0, "max_tokens": 16, "seed": 4}
    with_them, without = harness.ask(chat(harness), logprobs=True, **how), harness.ask(chat(harness), **how)
    assert essence(with_them) == essence(without)
    assert all(item.logprobs is None for item in without.completions)
    for item in with_them.completions:
        assert len(item.logprobs) == len(item.token_ids)
        assert all(value <= 0 for value in item.logprobs)


def test_a_guided_engine_writes_what_its_schema_says(harness):
    shape = {
        "type": "object",
        "properties": {"step": {"enum": [0, 1, 2]}, "kind": {"enum": ["hard", "soft"]}},
        "required": ["step", "kind"],
        "additionalProperties": False,
    }
    how = {"temperature": 1.0, "max_tokens": 64, "seed": 3}
    answer = harness.ask(chat(harness), schema_json=json.dumps(shape), **how)
    if harness.engine.guided:
        value = json.loads(answer.completions[0].text)
        assert value["step"] in (0, 1, 2)
        assert value["kind"] in ("hard", "soft")
    else:
        assert essence(answer) == essence(harness.ask(chat(harness), **how))
    assert harness.engine.guided is (harness.kind == "vllm")


def test_a_shared_prefix_is_not_computed_again(harness):
    shared = [(7 * place) % 200 + 3 for place in range(100)]
    harness.ask([*shared, 10, 11, 12], max_tokens=2)
    answer = harness.ask([*shared, 20, 21, 22, 23], max_tokens=2)
    assert 64 <= answer.cached_tokens <= 100
    assert answer.prompt_tokens == 104


def test_many_requests_at_once_are_all_answered_and_counted(harness):
    before = harness.engine.stats()
    answers = harness.ask_all([chat(harness, number) for number in range(50)], n=2, max_tokens=8)
    after = harness.engine.stats()
    assert after.requests - before.requests == 50
    assert after.prompt_tokens - before.prompt_tokens == sum(answer.prompt_tokens for answer in answers)
    assert after.cached_tokens - before.cached_tokens == sum(answer.cached_tokens for answer in answers)
    assert after.generated_tokens - before.generated_tokens == sum(answer.generated_tokens for answer in answers)
    assert after.busy_seconds > before.busy_seconds


def test_more_samples_than_places_are_all_drawn(harness):
    assert len(harness.ask(chat(harness), n=40, temperature=1.0, max_tokens=6).completions) == 40


def test_a_cancelled_request_frees_its_place(harness):
    """As many long requests as there are places are cancelled; afterwards others run."""

    async def scenario():
        long = [
            asyncio.create_task(harness.engine.generate([5, 6, 7 + number], Sampling(n=4, max_tokens=600)))
            for number in range(8)
        ]
        await asyncio.sleep(0.03)
        for task in long:
            task.cancel()
        ended = await asyncio.gather(*long, return_exceptions=True)
        assert any(isinstance(result, asyncio.CancelledError) for result in ended)
        return await asyncio.gather(
            *(harness.engine.generate(chat(harness, number), Sampling(max_tokens=4)) for number in range(20))
        )

    assert len(harness.run(scenario())) == 20


class TestTransformers:
    """What only the engine of our own can be asked."""

    @pytest.fixture
    def own(self):
        made = Harness("transformers")
        yield made
        made.run(made.engine.close())
        made.loop.close()

    def test_rows_of_cancelled_requests_are_empty_at_the_next_token(self, own):
        batcher = own.engine._batcher

        async def scenario():
            task = asyncio.create_task(own.engine.generate([5, 6, 7], Sampling(n=16, temperature=1.0, max_tokens=600)))
            while not batcher.running:
                await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            deadline = time.monotonic() + 60
            while batcher.running and time.monotonic() < deadline:
                await asyncio.sleep(0.005)
            return len(batcher.running)

        assert own.run(scenario()) == 0

    def test_a_model_that_raises_ends_the_engine_with_its_cause(self, own):
        def broken(*args, **kwargs):
            raise ArithmeticError("singular attention")

        own.engine.module.forward = broken
        prompts = [[5, 6, number] for number in range(20)]

        async def scenario():
            tasks = [own.engine.generate(prompt, Sampling(max_tokens=4)) for prompt in prompts]
            return await asyncio.gather(*tasks, return_exceptions=True)

        results = own.run(scenario())
        assert all(isinstance(result, EngineDied) for result in results)
        assert all("ArithmeticError: singular attention" in str(result) for result in results)
        with pytest.raises(EngineDied, match="singular attention"):
            own.ask([5])

    def test_text_is_the_same_with_a_cold_and_a_warm_cache(self, own):
        """What was computed by decoding serves as the prefix of a longer prompt, and changes nothing."""
        prompt = chat(own)
        how = {"temperature": 1.0, "max_tokens": 24, "seed": 9, "logprobs": True}
        first = own.ask(prompt, **how).completions[0]
        longer = prompt + first.token_ids
        warm = own.ask(longer, **how)
        assert warm.cached_tokens == len(longer) - 1
        own.engine._batcher.cache.clear()
        cold = own.ask(longer, **how)
        assert cold.cached_tokens == 0
        assert essence(warm) == essence(cold)

    def test_a_longer_request_that_joins_disturbs_no_other(self, own):
        """The slots are laid out anew while others run."""
        how = {"temperature": 1.0, "seed": 1, "max_tokens": 60}
        short, long = chat(own), [30 + place % 40 for place in range(400)]
        alone = own.ask(short, **how), own.ask(long, **how)

        async def scenario():
            first = asyncio.create_task(own.engine.generate(short, Sampling(**how)))
            await asyncio.sleep(0.05)
            return await asyncio.gather(first, own.engine.generate(long, Sampling(**how)))

        assert [essence(answer) for answer in own.run(scenario())] == [essence(answer) for answer in alone]


class TestAgainstTheModel:
    """Engines that run a model agree with a plain forward pass and with greedy generation."""

    @pytest.fixture(params=["transformers", "vllm"])
    def harness(self, harnesses, request):
        return harnesses(request.param)

    def test_log_probabilities_are_the_models(self, harness, reference):
        prompt = chat(harness)
        answer = harness.ask(prompt, n=3, temperature=0.6, top_p=0.9, max_tokens=20, logprobs=True)
        for item in answer.completions:
            with torch.inference_mode():
                logits = reference(torch.tensor([prompt + item.token_ids])).logits[0].log_softmax(-1)
            expected = [logits[len(prompt) - 1 + place, token].item() for place, token in enumerate(item.token_ids)]
            assert item.logprobs == pytest.approx(expected, abs=2e-3)

    def test_greedy_is_greedy_generation(self, harness, reference):
        prompts = [chat(harness), [5], [(11 * place) % 250 + 3 for place in range(200)]]
        answers = harness.ask_all(prompts, temperature=0.0, max_tokens=32)
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                whole = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=32)
            expected = whole[0, len(prompt) :].tolist()
            if expected[-1] == harness.engine.tokenizer.eos_token_id:
                expected.pop()
            assert answer.completions[0].token_ids == expected


def test_smollm2_greedy_is_greedy_generation():
    where = models.resolve("smollm2-135m-instruct")
    loop = asyncio.new_event_loop()
    config = EngineConfig(kind="transformers", context=256, kv_cache_gib=0.5)
    engine = loop.run_until_complete(engines.build(config, cpus=2))
    tokenizer = engine.tokenizer
    prompts = [
        prompt_ids(tokenizer, [{"role": "user", "content": text}])
        for text in ("What is 4 + 3?", "Name three colours.", "Write one short sentence about the sea.")
    ]

    async def ask():
        how = Sampling(temperature=0.0, max_tokens=16, n=2)
        return await asyncio.gather(*(engine.generate(prompt, how) for prompt in prompts))

    answers = loop.run_until_complete(ask())
    loop.run_until_complete(engine.close())
    loop.close()
    assert answers[1].cached_tokens > 0  # the system turn, shared by all three
    model = models.load_model(where.path, torch.float32).eval()
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)
        expected = whole[0, len(prompt) :].tolist()
        expected = expected[:-1] if expected[-1] == tokenizer.eos_token_id else expected
        assert [item.token_ids for item in answer.completions] == [expected, expected]


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_ended_says_why(harnesses, kind):
    """The last test, since the shared engines do not survive it."""
    harness = harnesses(kind)

    async def scenario():
        task = asyncio.create_task(harness.engine.generate([5, 6], Sampling(n=8, max_tokens=600, temperature=1.0)))
        await asyncio.sleep(0.2 if kind != "scripted" else 0.01)
        if kind == "vllm":
            os.kill(harness.engine._cores[0].pid, signal.SIGKILL)
        else:
            await harness.engine.close()
        with pytest.raises(EngineDied) as after:
            await harness.engine.generate([5, 6], Sampling())
        return str(after.value), (await asyncio.gather(task, return_exceptions=True))[0]

    after, during = harness.run(scenario())
    cause = "killed by SIGKILL" if kind == "vllm" else "closed"
    assert cause in after
    if kind != "scripted":  # its answer was ready
        assert isinstance(during, EngineDied)
        assert cause in str(during)
