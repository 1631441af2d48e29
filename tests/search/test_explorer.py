"""Growing trees on an engine: what is stored is what was scored, and neither timing nor a restart changes a tree."""

import asyncio
import json
import random
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.errors import EngineDied
from raylm.llm.chat import prompt_ids
from raylm.llm.protocol import Completion, Generation, ModelRef
from raylm.search import policy
from raylm.search.explorer import grow
from raylm.search.growth import tree_id
from tests.search.world import AnswerCheck, Recorder, config, grow_one, problem, scripted


def assert_sound(tree, check, settings):
    """What must hold of every tree."""
    nodes = {node.id: node for node in tree.nodes}
    assert list(nodes) == list(range(len(tree.nodes)))
    ends = set()
    for found in tree.trajectories:
        path = [nodes[node] for node in found.node_ids]
        assert [node.parent for node in path] == [0, *found.node_ids[:-1]]
        assert "".join(node.text for node in path) == found.text
        assert found.tokens == sum(len(node.token_ids) for node in path)
        assert found.logprob == pytest.approx(sum(node.logprob for node in path))
        assert path[-1].terminal
        assert not any(node.terminal for node in path[:-1])
        ends.add(path[-1].id)
        if found.finish_reason == "length":
            assert (found.verdict, found.reward, found.answer) == ("wrong", 0.0, "")
        else:
            again = check.check(problem(), found.text)
            assert (found.verdict, found.answer) == (again.verdict, again.answer)
            assert found.reward == float(again.verdict == "correct")
    assert len(ends) == len(tree.trajectories)
    assert ends == {node.id for node in tree.nodes if node.terminal}
    texts = [(" ".join(found.text.split()), found.finish_reason) for found in tree.trajectories]
    assert len(set(texts)) == len(texts)
    for node in tree.nodes:
        below = [child for child in tree.nodes if child.parent == node.id]
        assert node.visits >= sum(child.visits for child in below)
    assert tree.rounds <= settings.search.rounds
    reward_sum = sum(nodes[found.node_ids[-1]].visits * found.reward for found in tree.trajectories)
    assert tree.nodes[0].value_sum == reward_sum


def test_a_tree_has_right_and_wrong_paths_that_were_each_verified_once(tokenizer):
    check, settings = AnswerCheck(), config(rounds=4, samples=4, enough_good=0)
    tree, engine = grow_one(tokenizer, settings, check=check)
    assert_sound(tree, check, settings)
    assert len(check.seen) == len(set(check.seen)) == len(tree.trajectories)
    assert {found.verdict for found in tree.trajectories} == {"correct", "wrong"}
    assert tree.id == tree_id(settings, "sum-0", 0)
    assert tree.prompt_tokens == sum(len(prompt) for prompt, _ in engine.requests)
    assert tree.nodes[0].visits == 16


def test_requests_continue_exact_prefixes_within_the_length_of_a_response(tokenizer):
    settings = config(rounds=10, parallel=2, samples=2, enough_good=0)
    tree, engine = grow_one(tokenizer, settings)
    question = prompt_ids(tokenizer, settings.prompt.messages(problem().question))
    prefixes = {()}
    for found in tree.trajectories:
        ids = []
        for node in found.node_ids[:-1]:
            ids += tree.nodes[node].token_ids
            prefixes.add(tuple(ids))
    for prompt, sampling in engine.requests:
        assert list(prompt[: len(question)]) == question
        assert prompt[len(question) :] in prefixes
        assert sampling.max_tokens == settings.search.max_tokens - len(prompt) + len(question)
    seeds = [sampling.seed for _, sampling in engine.requests]
    assert seeds == [policy.request_seed(0, "sum-0", number) for number in range(len(seeds))]
    assert len(set(seeds)) == len(seeds)
    assert any(len(prompt) > len(question) for prompt, _ in engine.requests)


def test_a_tree_stops_when_it_has_enough_of_both_kinds(tokenizer):
    tree, _ = grow_one(tokenizer, config(rounds=50, samples=2, enough_good=1, enough_bad=2))
    verdicts = [found.verdict for found in tree.trajectories]
    assert verdicts.count("correct") >= 1
    assert verdicts.count("wrong") >= 2
    assert tree.rounds < 10


def test_a_tree_stops_at_its_token_budget(tokenizer):
    one, _ = grow_one(tokenizer, config(rounds=1, enough_good=0))
    tree, _ = grow_one(tokenizer, config(rounds=50, enough_good=0, token_budget=one.generated_tokens))
    assert tree.rounds == 1
    assert tree.generated_tokens == one.generated_tokens


def test_a_tree_stops_when_nothing_new_can_be_found(tokenizer):
    settings = config(rounds=50, samples=4, enough_good=0)
    tree, engine = grow_one(tokenizer, settings, engine=Recorder(scripted(tokenizer, accuracy=1.0)))
    assert len(tree.trajectories) == 1
    assert tree.rounds < 50
    assert len(engine.requests) == tree.rounds


def test_responses_that_run_out_of_tokens_are_marked_and_wrong_without_a_check(tokenizer):
    check, settings = AnswerCheck(), config(rounds=2, samples=2, max_tokens=12)
    tree, _ = grow_one(tokenizer, settings, check=check)
    assert_sound(tree, check, settings)
    assert check.seen == []
    assert {found.finish_reason for found in tree.trajectories} == {"length"}


def test_what_cannot_be_verified_is_counted_and_has_no_value(tokenizer):
    check, settings = AnswerCheck(odd=True), config(rounds=6, samples=4, enough_good=0)
    tree, _ = grow_one(tokenizer, settings, check=check)
    assert_sound(tree, check, settings)
    unknown = [found for found in tree.trajectories if found.verdict == "unverifiable"]
    assert unknown
    assert all(tree.nodes[found.node_ids[-1]].visits == 0 for found in unknown)
    assert tree.nodes[0].visits < 24


@given(st.integers(0, 5), st.integers(1, 3), st.sampled_from(["line", "sentence"]), st.integers(0, 2**31))
@settings(deadline=None, max_examples=25)
def test_the_order_of_answers_does_not_change_a_tree(tokenizer, seed, parallel, step, delays):
    settings = config(rounds=3, parallel=parallel, samples=3, step=step, enough_good=0)
    alone, _ = grow_one(tokenizer, settings, seed=seed)

    async def crowd():
        engine = Recorder(scripted(tokenizer), random.Random(delays))
        check = AnswerCheck()
        others = [problem(number, f"What is {number} + 8 - 5?", str(number + 3)) for number in range(1, 4)]
        return await asyncio.gather(*(grow(item, engine, check, settings, seed) for item in [problem(), *others]))

    assert asdict(asyncio.run(crowd())[0]) == asdict(alone)


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_tree_from_a_snapshot_is_the_tree_itself_and_repeats_no_round(tokenizer, cut):
    settings = config(rounds=10, parallel=2, samples=2, enough_good=0)
    whole, recorder = grow_one(tokenizer, settings)
    saved = []

    async def save(growth):
        saved.append(json.dumps(growth.snapshot()))

    with pytest.raises(EngineDied, match="planned"):
        grow_one(tokenizer, settings, engine=Recorder(scripted(tokenizer), die_at=cut), on_round=save)
    assert len(saved) == cut
    again, resumed = grow_one(tokenizer, settings, snapshot=json.loads(saved[-1]))
    assert asdict(again) == asdict(whole)
    assert resumed.requests == recorder.requests[cut:]


def test_a_failed_request_cancels_those_in_flight_beside_it(tokenizer):
    class Stuck(Recorder):
        cancelled = 0

        async def generate(self, prompt, sampling):
            self.requests.append(prompt)
            if len(self.requests) == 1:
                raise EngineDied("planned")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

    engine = Stuck(scripted(tokenizer))
    with pytest.raises(EngineDied, match="planned"):
        grow_one(tokenizer, config(parallel=3), engine=engine)
    assert engine.cancelled == 2


class Babbler:
    """Answers with arbitrary tokens drawn from the request's seed: any text that a model could write."""

    name, model = "babbler", ModelRef("babbler", "0")

    def __init__(self, tokenizer, alphabet, length):
        self.tokenizer, self.alphabet, self.length = tokenizer, alphabet, length

    async def generate(self, prompt, sampling):
        completions = []
        for index in range(sampling.n):
            draw = random.Random(f"{sampling.seed}/{index}/{list(prompt)}")
            ids = [draw.choice(self.alphabet) for _ in range(draw.randint(0, self.length))]
            reason = "length" if len(ids) >= sampling.max_tokens else "stop"
            ids = ids[: sampling.max_tokens]
            completions.append(Completion(self.tokenizer.decode(ids), ids, reason, [-0.5] * len(ids)))
        return Generation(len(prompt), 0, completions)


@given(
    st.lists(st.integers(3, 258), min_size=1, max_size=4),
    st.integers(0, 10),
    st.sampled_from(["line", "sentence"]),
    st.tuples(st.integers(1, 3), st.integers(1, 8)),
)
@settings(deadline=None, max_examples=60)
def test_trees_of_arbitrary_tokens_are_sound(tokenizer, bytes_, seed, step, size):
    parallel, max_tokens = size
    newline, space, dot = tokenizer.encode("\n .", add_special_tokens=False)
    settings = config(rounds=4, parallel=parallel, samples=3, step=step, max_tokens=max_tokens, enough_good=0)
    engine, check = Babbler(tokenizer, [newline, newline, space, dot, *bytes_], 6), AnswerCheck()
    tree, _ = grow_one(tokenizer, settings, seed=seed, check=check, engine=engine)
    nodes = {node.id: node for node in tree.nodes}
    for found in tree.trajectories:
        path = [nodes[node] for node in found.node_ids]
        assert "".join(node.text for node in path) == found.text
        assert found.finish_reason == "length" or found.text in check.seen
    assert len(check.seen) == sum(found.finish_reason == "stop" for found in tree.trajectories)
    assert len({tuple(found.node_ids) for found in tree.trajectories}) == len(tree.trajectories)
