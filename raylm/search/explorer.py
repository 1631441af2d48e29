"""Growing one tree on an async engine; many trees grow at once as coroutines that share the engine.

An expansion selects a leaf, samples completions of it to the end, inserts every path, verifies each new response once,
and backs the rewards up. Several may be in flight at once, and a new one starts whenever the oldest is backed up:
expansions overlap, but they are backed up in the order in which they were selected, never in that of arrival. So a tree
is a function of problem, config, seed and what the engine answers, whatever the timing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from raylm.records import Problem, Trajectory, Tree
from raylm.search import policy, strategies
from raylm.search.config import ExploreConfig
from raylm.search.growth import Growth, record
from raylm.search.steps import Segmenter
from raylm.search.tree import LENGTH, STOP
from raylm.search.value import Scorer, rewards, votes

if TYPE_CHECKING:
    from raylm.llm.protocol import Engine, Generation
    from raylm.tasks.verify import Verification

Result = TypeVar("Result")
OnRound = Callable[[Growth], Awaitable[None]]


class Verifier(Protocol):
    """What checks a response; see `raylm.tasks.verify.VerifierPool`."""

    async def verify(self, problem: Problem, response: str) -> Verification: ...


async def grow(
    problem: Problem,
    engine: Engine,
    verifier: Verifier,
    config: ExploreConfig,
    seed: int,
    *,
    scorer: Scorer | None = None,
    snapshot: dict[str, Any] | None = None,
    on_round: OnRound | None = None,
) -> Tree:
    """Search one problem's tree.

    Args:
        problem: what is searched.
        engine: the policy.
        verifier: says whether answers are right.
        config: `search` and `prompt` are used; the tree carries the whole config's hash.
        seed: of this search; requests' seeds derive from it, the problem's id and the number of the expansion.
        scorer: the reward model, when `search.value` gives it a weight.
        snapshot: `Growth.snapshot()` of an interrupted search with the same arguments, to go on from.
        on_round: awaited after every expansion, for instance to save a snapshot.

    Raises:
        PromptTooLong: the question leaves no room for a response in the engine's context.
        EngineDied: the engine stopped; what the last `on_round` saw is the state to go on from.
    """
    from raylm.llm.chat import prompt_ids

    growth = Growth.restore(config, snapshot)
    prompt = list(prompt_ids(engine.tokenizer, config.prompt.messages(problem.question)))
    how = config.search
    segmenter = Segmenter(engine.tokenizer, how.step, how.step_tokens, how.step_pattern)
    search = _Search(problem, engine, verifier, scorer, config, seed, prompt, segmenter, growth)
    strategy = strategies.make(config.search)
    flying = deque(search.launch(number, leaf) for number, leaf in growth.pending)
    since = time.monotonic()
    try:
        while True:
            while len(flying) < config.search.parallel and not growth.finished(config):
                leaf = strategy.next(growth)
                if leaf is None:
                    break
                growth.pending.append((growth.expansions, leaf))
                flying.append(search.launch(growth.expansions, leaf))
                growth.expansions += 1
            if not flying:
                return record(growth, problem, engine, config, seed)
            await search.back_up(await flying[0])
            flying.popleft()
            growth.seconds, since = growth.seconds + time.monotonic() - since, time.monotonic()
            if on_round is not None:
                await on_round(growth)
    finally:
        await _cancel(flying)


@dataclass(frozen=True, slots=True)
class _Search:
    """The parts of an expansion."""

    problem: Problem
    engine: Engine
    verifier: Verifier
    scorer: Scorer | None
    config: ExploreConfig
    seed: int
    prompt: list[int]
    segmenter: Segmenter
    growth: Growth

    def launch(self, number: int, leaf: int) -> asyncio.Task[Generation]:
        """Ask for an expansion's samples; its leaf carries virtual visits until they are backed up."""
        search = self.config.search
        prefix = self.growth.tree.token_ids(leaf)
        seed = policy.request_seed(self.seed, self.problem.id, number)
        how = policy.sampling(search, number, search.samples, len(prefix), seed)
        return asyncio.ensure_future(self.engine.generate(self.prompt + prefix, how))

    async def back_up(self, answer: Generation) -> None:
        """Insert, judge and back up the oldest expansion."""
        growth, tree = self.growth, self.growth.tree
        number, leaf = growth.pending[0]
        prefix = tree.token_ids(leaf)
        ends = []
        for completion in answer.completions:
            steps = self.segmenter.split(prefix, completion.token_ids, completion.logprobs)
            how = LENGTH if completion.finish_reason == "length" else STOP
            ends.append(tree.insert(leaf, steps, how, number)[0])
        await self._judge([end for end in dict.fromkeys(ends) if end not in growth.trajectories])
        # From here on nothing waits, so that a snapshot sees all of an expansion or nothing of it.
        tree.release(leaf, self.config.search.samples)
        growth.pending.pop(0)
        growth.draws += ends
        growth.draw_tokens += [len(completion.token_ids) for completion in answer.completions]
        self._reward(ends)
        growth.rounds += 1
        growth.prompt_tokens += len(self.prompt) + len(prefix)
        growth.cached_tokens += answer.cached_tokens
        growth.generated_tokens += answer.generated_tokens

    async def _judge(self, new: Sequence[int]) -> None:
        """Make a trajectory of every new response; one that ran out of tokens has no answer and is wrong."""
        growth, tree = self.growth, self.growth.tree
        finished = [end for end in new if tree.column("end")[end] == STOP]
        texts = [tree.text(end) for end in finished]
        verdicts = await _together([self.verifier.verify(self.problem, text) for text in texts])
        if self.scorer is not None:
            scores = await _together([self.scorer.score(self.problem.question, text) for text in texts])
            growth.scores.update(zip(finished, scores, strict=True))
        found = dict(zip(finished, verdicts, strict=True))
        for end in new:
            path = tree.path(end)
            growth.verdicts[found[end].verdict if end in found else "wrong"] += 1
            growth.trajectories[end] = Trajectory(
                node_ids=path,
                text=tree.text(end),
                answer=found[end].answer if end in found else "",
                verdict=found[end].verdict if end in found else "wrong",
                reward=0.0,
                tokens=int(tree.column("tokens")[end]),
                logprob=sum(tree.steps[node].logprob for node in path),
                finish_reason="stop" if end in found else "length",
            )

    def _reward(self, ends: Sequence[int]) -> None:
        """Back up new draws, and revise what earlier ones are worth where the vote has moved."""
        growth, tree = self.growth, self.growth.tree
        value = self.config.search.value
        known = growth.trajectories if value.consistency else {end: growth.trajectories[end] for end in ends}
        shares = votes(growth.trajectories, growth.draws) if value.consistency else {}
        worth = rewards(value, known, shares, growth.scores)
        for end, reward in worth.items():
            if reward is not None:
                tree.revise(end, reward)
                if reward != growth.trajectories[end].reward:
                    growth.trajectories[end] = replace(growth.trajectories[end], reward=reward)
        for end in ends:
            tree.backup(end, worth[end])


async def _together(calls: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Results in the order given; when one call fails the others are cancelled before its error is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        await _cancel(tasks)
        raise


async def _cancel(tasks: Sequence[asyncio.Task[Any]] | deque[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
