"""Strategies and values: what is sampled next, which response is picked, and what responses are worth."""

import asyncio
import itertools
import json
import math
from collections import Counter
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.errors import EngineDied
from raylm.llm.protocol import Completion, Generation
from raylm.records import Trajectory
from raylm.search.config import ValueConfig
from raylm.search.explorer import grow
from raylm.search.strategies import best, majority
from raylm.search.totals import Curve, Totals, draws_within
from raylm.search.value import rewards, votes
from tests.search.world import AnswerCheck, Recorder, config, grow_one, problem, scripted

STRATEGIES = ("mcts", "beam", "best_of_n", "majority")


def path(answer, verdict="wrong", reward=None, logprob=-1.0, reason="stop"):
    worth = float(verdict == "correct") if reward is None else reward
    return Trajectory([1], f"Answer: {answer}", answer, verdict, worth, 3, logprob, reason)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("parallel", [1, 3])
def test_every_strategy_keeps_the_same_books(tokenizer, strategy, parallel):
    settings = config(strategy=strategy, rounds=6, samples=3, beam=2, parallel=parallel, enough_good=0)
    tree, engine = grow_one(tokenizer, settings)
    assert tree.strategy == strategy
    assert len(tree.draws) == len(tree.draw_tokens) == 3 * tree.rounds == 3 * len(engine.requests)
    assert sum(tree.draw_tokens) == tree.generated_tokens
    assert tree.prompt_tokens == sum(len(prompt) for prompt, _ in engine.requests)
    assert set(tree.draws) == set(range(len(tree.trajectories)))
    counts = Counter(tree.draws)
    for place, found in enumerate(tree.trajectories):
        assert tree.nodes[found.node_ids[-1]].visits == counts[place]
    assert 0 <= tree.picked < len(tree.trajectories)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_goes_on_from_any_snapshot_to_the_same_tree(tokenizer, strategy):
    value = {"consistency": 0.5}
    settings = config(strategy=strategy, rounds=7, samples=2, beam=2, parallel=2, enough_good=0, value=value)
    whole, _ = grow_one(tokenizer, settings)
    for cut in range(1, whole.rounds):
        saved = []

        async def save(growth, saved=saved):
            saved.append(json.dumps(growth.snapshot()))

        with pytest.raises(EngineDied):
            grow_one(tokenizer, settings, engine=Recorder(scripted(tokenizer), die_at=cut), on_round=save)
        again, _ = grow_one(tokenizer, settings, snapshot=json.loads(saved[-1]))
        assert asdict(again) == asdict(whole)


def test_a_new_expansion_starts_while_a_slow_one_is_still_in_flight(tokenizer):
    """The second of three is held back until a fourth has started: with a barrier it would wait for ever."""

    class Gate(Recorder):
        async def generate(self, prompt, sampling):
            number = len(self.requests)
            self.requests.append((tuple(prompt), sampling))
            if number == 1:
                while len(self.requests) < 4:  # the fourth starts when the first is backed up
                    await asyncio.sleep(0)
            return await self.engine.generate(prompt, sampling)

    settings = config(rounds=6, samples=2, parallel=3, enough_good=0)
    tree = asyncio.run(asyncio.wait_for(grow(problem(), Gate(scripted(tokenizer)), AnswerCheck(), settings, 0), 20))
    assert tree.rounds == 6
    assert asdict(tree) == asdict(grow_one(tokenizer, settings)[0])


def test_sampling_draws_from_the_question_alone_and_a_beam_goes_depth_by_depth(tokenizer):
    flat, engine = grow_one(tokenizer, config(strategy="best_of_n", rounds=5, samples=2, enough_good=0))
    assert len({prompt for prompt, _ in engine.requests}) == 1
    assert flat.rounds == 5
    _, engine = grow_one(tokenizer, config(strategy="beam", rounds=20, samples=3, beam=2, enough_good=0))
    lengths = [len(prompt) for prompt, _ in engine.requests]
    assert lengths == sorted(lengths)  # every operation of the scripted policy takes one line
    assert max(Counter(lengths).values()) <= 2
    assert Counter(lengths)[lengths[0]] == 1


def test_a_beam_keeps_the_most_valuable_steps(tokenizer):
    settings = config(strategy="beam", rounds=2, samples=8, beam=1, enough_good=0)
    engine = Recorder(scripted(tokenizer, accuracy=0.8))
    tree, _ = grow_one(tokenizer, settings, engine=engine)
    first = config(strategy="beam", rounds=1, samples=8, beam=1, enough_good=0)
    before, _ = grow_one(tokenizer, first, engine=Recorder(scripted(tokenizer, accuracy=0.8)))
    steps = [node for node in before.nodes if node.parent == 0 and not node.terminal]
    best_value = max(node.value for node in steps)
    start = len(engine.requests[0][0])
    chosen = [node for node in steps if list(engine.requests[1][0][start:]) == node.token_ids]
    assert [node.value for node in chosen] == [best_value]
    assert min(node.value for node in steps) < best_value
    assert tree.rounds == 2


def test_best_picks_by_reward_and_majority_by_votes():
    found = {1: path("5"), 2: path("7", "correct"), 3: path("5 ", logprob=-0.1), 4: path("", reason="length")}
    draws = [1, 3, 2, 4, 4, 4]
    assert best(found, draws) == 2
    assert majority(found, draws) == 1
    assert majority({4: found[4]}, [4]) is None
    assert best({}, []) is None
    assert best({1: path("5"), 3: path("5", logprob=-0.1)}, [1, 3]) == 3


def test_rewards_are_the_weighted_mean_of_what_is_known():
    found = {1: path("5", "correct"), 2: path("6"), 3: path("5", "unverifiable"), 4: path("", reason="length")}
    shares = votes(found, [1, 1, 2, 3, 4])
    assert shares == {"5": 0.6, "6": 0.2}
    plain = rewards(ValueConfig(), found, {}, {})
    assert plain == {1: 1.0, 2: 0.0, 3: None, 4: 0.0}
    mixed = rewards(ValueConfig(verifier=1, consistency=1), found, shares, {})
    assert mixed == {1: 0.8, 2: 0.1, 3: 0.6, 4: 0.0}
    model = rewards(ValueConfig(verifier=0, reward_model=2, model="m"), found, {}, {1: 0.25, 2: 0.75, 3: 0.5})
    assert model == {1: 0.25, 2: 0.75, 3: 0.5, 4: 0.0}


@given(st.sampled_from(["mean", "max"]), st.integers(0, 50), st.integers(1, 3))
@settings(deadline=None, max_examples=20)
def test_self_consistency_values_are_those_of_the_final_vote(tokenizer, backup, seed, parallel):
    value = {"verifier": 0, "consistency": 1}
    settings = config(rounds=5, samples=3, parallel=parallel, backup=backup, value=value)
    tree, _ = grow_one(tokenizer, settings, seed=seed)
    shares = votes(dict(enumerate(tree.trajectories)), tree.draws)
    for found in tree.trajectories:
        assert found.reward == pytest.approx(shares.get(found.answer, 0.0))
    total = sum(tree.trajectories[place].reward for place in tree.draws)
    assert tree.nodes[0].value_sum == pytest.approx(total)


def test_a_search_that_does_not_see_the_verifier_does_not_stop_by_it(tokenizer):
    blind = config(rounds=6, samples=2, enough_good=1, enough_bad=1, value={"verifier": 0, "consistency": 1})
    assert grow_one(tokenizer, blind)[0].rounds == 6


def test_the_reward_model_scores_each_finished_response_once(tokenizer):
    class Scorer:
        seen: list[str] = []  # noqa: RUF012

        async def score(self, question, response):
            self.seen.append(response)
            return 0.25

    scorer = Scorer()
    settings = config(rounds=4, samples=4, value={"verifier": 0, "reward_model": 1, "model": "m"})
    tree, _ = grow_one(tokenizer, settings, scorer=scorer)
    assert sorted(scorer.seen) == sorted(found.text for found in tree.trajectories if found.finish_reason == "stop")
    assert {found.reward for found in tree.trajectories} == {0.25}


def test_hard_trees_get_more_expansions_and_easy_ones_fewer(tokenizer):
    easy = config(rounds=6, easy_rounds=2, samples=2)
    assert grow_one(tokenizer, easy, engine=Recorder(scripted(tokenizer, accuracy=1.0)))[0].rounds == 2
    hard = config(rounds=2, hard_rounds=5, samples=2)
    assert grow_one(tokenizer, hard, engine=Recorder(scripted(tokenizer, accuracy=0.0)))[0].rounds == 5
    good = Recorder(scripted(tokenizer, accuracy=0.9))
    settings = config(rounds=2, hard_rounds=5, samples=8, enough_good=0)
    assert grow_one(tokenizer, settings, engine=good)[0].rounds == 2


def test_budgets_of_tokens_nodes_and_seconds_end_a_search(tokenizer):
    free, _ = grow_one(tokenizer, config(rounds=8, enough_good=0))
    for budget in ({"token_budget": free.generated_tokens // 2}, {"node_budget": len(free.nodes) // 2}):
        assert 1 <= grow_one(tokenizer, config(rounds=8, enough_good=0, **budget))[0].rounds < 8
    assert grow_one(tokenizer, config(rounds=8, enough_good=0, seconds_budget=1e-9))[0].rounds == 1


def test_temperature_goes_in_a_straight_line(tokenizer):
    _, engine = grow_one(tokenizer, config(rounds=5, temperature=1.0, temperature_end=0.2, enough_good=0))
    assert [sampling.temperature for _, sampling in engine.requests] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_curves_count_what_fits_a_budget_and_never_fall(tokenizer, strategy):
    totals, curve = Totals(), Curve()
    trees = [grow_one(tokenizer, config(strategy=strategy, rounds=5, enough_good=0), seed=seed)[0] for seed in range(6)]
    for tree in trees:
        totals.add(tree)
        curve.add(tree)
        for budget in (0, 30, 100, 10**6):
            draws = draws_within(tree, budget)
            assert sum(tree.draw_tokens[:draws]) <= budget
            assert draws == len(tree.draws) or sum(tree.draw_tokens[: draws + 1]) > budget
    points = curve.points()
    for less, more in itertools.pairwise(points):
        assert less.coverage <= more.coverage
        assert less.correct <= more.correct
        assert less.spent <= more.spent <= more.tokens
    figures = totals.figures()
    assert points[-1].coverage == figures["coverage"]
    assert points[-1].majority == figures["majority_accuracy"]
    assert figures["picked_accuracy"] == (figures["majority_accuracy" if strategy == "majority" else "coverage"])


def always(text, reason="stop", logprob=-0.5):
    """An engine that answers every request alike."""

    class Stubborn(Recorder):
        async def generate(self, prompt, sampling):
            self.requests.append((tuple(prompt), sampling))
            ids = self.tokenizer.encode(text, add_special_tokens=False)[: sampling.max_tokens]
            ended = "length" if len(ids) == sampling.max_tokens else reason
            completion = Completion(self.tokenizer.decode(ids), ids, ended, [logprob] * len(ids))
            return Generation(len(prompt), 0, [completion] * sampling.n)

    return Stubborn


HOSTILE = {
    "nothing": (always(""), {("stop", "wrong")}),
    "nothing, out of tokens": (always("", "length"), {("length", "wrong")}),
    "blanks": (always("  \n\n \n"), {("stop", "wrong")}),
    "a line without end": (always("x" * 999), {("length", "wrong")}),
    "lines without end": (always("a\n" * 999), {("length", "wrong")}),
    "odd characters": (always("é→数\u202e\x00\u2028😀\nAnswer: 11"), {("stop", "correct")}),
    "impossible tokens": (always("3 + 8 = 11\nAnswer: 11", logprob=-math.inf), {("stop", "correct")}),
    "certain tokens": (always("3 + 8 = 11\nAnswer: 11", logprob=0.0), {("stop", "correct")}),
}


@pytest.mark.parametrize("rule", ["uct", "puct"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("engine", HOSTILE)
def test_whatever_an_engine_answers_a_search_ends_and_keeps_count(tokenizer, engine, strategy, rule):
    made, ends = HOSTILE[engine]
    settings = config(strategy=strategy, rule=rule, rounds=8, samples=3, parallel=3, beam=50, enough_good=0)
    tree, asked = grow_one(tokenizer, settings, engine=made(scripted(tokenizer)))
    assert tree.rounds == len(asked.requests) <= 8
    assert len(tree.draws) == 3 * tree.rounds
    seen = {(found.finish_reason, found.verdict) for found in tree.trajectories}
    assert ends <= seen <= {*ends, ("length", "wrong")}  # what is continued again and again runs out of tokens


@pytest.mark.parametrize(
    "limits",
    [
        {"rounds": 1, "samples": 1}, {"token_budget": 1}, {"node_budget": 2}, {"max_tokens": 1}, {"max_depth": 1},
        {"parallel": 50}, {"beam": 500}, {"widen": 0.01, "widen_power": 0}, {"widen": 100, "widen_power": 1}, {"c": 0},
    ],
)  # fmt: skip
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_smallest_and_the_largest_settings_hold(tokenizer, strategy, limits):
    tree, engine = grow_one(tokenizer, config(**{"strategy": strategy, "rounds": 5, "enough_good": 0, **limits}))
    assert 1 <= tree.rounds == len(engine.requests) <= 5
    assert tree.trajectories
