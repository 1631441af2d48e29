"""Growing one tree on an async engine; many trees grow at once as coroutines that share the engine.

A round selects leaves, samples completions of them to the end, inserts every path, verifies each new response once, and
backs the rewards up. Within a round everything happens in the order of leaves and samples, never of arrival, so a
tree is a function of problem, config, seed and what the engine answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from raylm.config import config_hash
from raylm.records import Node, Problem, Trajectory, Tree
from raylm.search import policy
from raylm.search.config import ExploreConfig, SearchConfig
from raylm.search.steps import Segmenter
from raylm.search.tree import LENGTH, OPEN, STOP, SearchTree
from raylm.units import unit_key

if TYPE_CHECKING:
    from raylm.llm.protocol import Engine, Generation
    from raylm.tasks.verify import Verification

Result = TypeVar("Result")
OnRound = Callable[["Growth"], Awaitable[None]]


class Verifier(Protocol):
    """What checks a response; see `raylm.tasks.verify.VerifierPool`."""

    async def verify(self, problem: Problem, response: str) -> Verification: ...


@dataclass(slots=True)
class Growth:
    """A search between two rounds."""

    tree: SearchTree
    trajectories: dict[int, Trajectory] = field(default_factory=dict)
    """Every finished response by its terminal node, in the order found."""
    rounds: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the engine spared since this process took the search up; no part of the result."""

    def snapshot(self) -> dict[str, Any]:
        """The search as JSON data, exactly."""
        return {
            "tree": self.tree.state(),
            "trajectories": [[end, asdict(found)] for end, found in self.trajectories.items()],
            "rounds": self.rounds,
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
        }

    @classmethod
    def restore(cls, config: ExploreConfig, snapshot: dict[str, Any] | None) -> Growth:
        """The search of a snapshot, or a new one."""
        limits = policy.limits(config.search)
        if snapshot is None:
            return cls(SearchTree(limits))
        return cls(
            SearchTree.from_state(limits, snapshot["tree"]),
            {end: Trajectory(**found) for end, found in snapshot["trajectories"]},
            snapshot["rounds"],
            snapshot["prompt_tokens"],
            snapshot["generated_tokens"],
        )


def tree_id(config: ExploreConfig, problem_id: str, seed: int) -> str:
    """Identity of a tree: equal for equal config, seed and problem id."""
    return unit_key("tree", config_hash(config), seed, problem_id)


async def grow(
    problem: Problem,
    engine: Engine,
    verifier: Verifier,
    config: ExploreConfig,
    seed: int,
    *,
    snapshot: dict[str, Any] | None = None,
    on_round: OnRound | None = None,
) -> Tree:
    """Search one problem's tree.

    Args:
        problem: what is searched.
        engine: the policy.
        verifier: decides rewards, 1 for correct and 0 for wrong.
        config: `search` and `prompt` are used; the tree carries the whole config's hash.
        seed: of this search; requests' seeds derive from it, the problem's id, the round and the leaf.
        snapshot: `Growth.snapshot()` of an interrupted search with the same arguments, to go on from.
        on_round: awaited after every round, for instance to save a snapshot.

    Raises:
        PromptTooLong: the question leaves no room for a response in the engine's context.
        EngineDied: the engine stopped; what the last `on_round` saw is the state to go on from.
    """
    from raylm.llm.chat import prompt_ids

    growth = Growth.restore(config, snapshot)
    prompt = list(prompt_ids(engine.tokenizer, config.prompt.messages(problem.question)))
    search = _Search(problem, engine, verifier, config.search, seed, prompt, growth)
    segmenter = Segmenter(engine.tokenizer, config.search.step)
    while not policy.finished(
        config.search, growth.tree, list(growth.trajectories.values()), growth.rounds, growth.generated_tokens
    ):
        answers = await search.sample()
        ends = _insert(growth, segmenter, answers)
        await search.verify(ends)
        for end in ends:
            found = growth.trajectories[end]
            growth.tree.backup(end, None if found.verdict == "unverifiable" else found.reward)
        growth.rounds += 1
        if on_round is not None:
            await on_round(growth)
    return _record(growth, problem, engine, config, seed)


@dataclass(frozen=True, slots=True)
class _Search:
    """The parts of a round that wait for others: sampling and verification."""

    problem: Problem
    engine: Engine
    verifier: Verifier
    config: SearchConfig
    seed: int
    prompt: list[int]
    growth: Growth

    async def sample(self) -> list[tuple[int, Generation]]:
        """Select this round's leaves and sample from all at once; (leaf, answer) in the order of selection."""
        config, growth, tree = self.config, self.growth, self.growth.tree
        leaves: list[int] = []
        requests = []
        try:
            for index in range(config.leaves):
                leaves.append(leaf := tree.select(weight=config.samples))
                prefix = tree.token_ids(leaf)
                seed = policy.request_seed(self.seed, self.problem.id, growth.rounds, index)
                how = policy.sampling(config, len(prefix), seed)
                requests.append(self.engine.generate(self.prompt + prefix, how))
                growth.prompt_tokens += len(self.prompt) + len(prefix)
            answers = await _together(requests)
        finally:
            for leaf in leaves:
                tree.release(leaf, weight=config.samples)
        growth.cached_tokens += sum(answer.cached_tokens for answer in answers)
        growth.generated_tokens += sum(answer.generated_tokens for answer in answers)
        return list(zip(leaves, answers, strict=True))

    async def verify(self, ends: Sequence[int]) -> None:
        """Make a trajectory of every response that is new; one that ran out of tokens has no answer and is wrong."""
        tree, trajectories = self.growth.tree, self.growth.trajectories
        new = [end for end in dict.fromkeys(ends) if end not in trajectories]
        finished = [end for end in new if tree.column("end")[end] == STOP]
        verdicts = await _together([self.verifier.verify(self.problem, tree.text(end)) for end in finished])
        scored = dict(zip(finished, verdicts, strict=True))
        for end in new:
            path = tree.path(end)
            trajectories[end] = Trajectory(
                node_ids=path,
                text=tree.text(end),
                answer=scored[end].answer if end in scored else "",
                verdict=scored[end].verdict if end in scored else "wrong",
                reward=float(end in scored and scored[end].verdict == "correct"),
                tokens=int(tree.column("tokens")[end]),
                logprob=sum(tree.steps[node].logprob for node in path),
                finish_reason="stop" if end in scored else "length",
            )


def _insert(growth: Growth, segmenter: Segmenter, answers: Sequence[tuple[int, Generation]]) -> list[int]:
    """Put every completion into the tree; the terminal node of each."""
    ends = []
    for leaf, answer in answers:
        prefix = growth.tree.token_ids(leaf)
        for completion in answer.completions:
            steps = segmenter.split(prefix, completion.token_ids, completion.logprobs)
            how = LENGTH if completion.finish_reason == "length" else STOP
            ends.append(growth.tree.insert(leaf, steps, how, growth.rounds)[0])
    return ends


async def _together(calls: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Results in the order given; when one call fails the others are cancelled before its error is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _record(growth: Growth, problem: Problem, engine: Engine, config: ExploreConfig, seed: int) -> Tree:
    tree = growth.tree
    columns = {name: tree.column(name).tolist() for name in ("parent", "visits", "value_sum", "end", "round")}
    nodes = [
        Node(
            id=index,
            parent=columns["parent"][index],
            text=step.text,
            token_ids=list(step.token_ids),
            logprob=step.logprob,
            visits=columns["visits"][index],
            value_sum=columns["value_sum"][index],
            terminal=columns["end"][index] != OPEN,
            round=columns["round"][index],
        )
        for index, step in enumerate(tree.steps)
    ]
    return Tree(
        id=tree_id(config, problem.id, seed),
        problem_id=problem.id,
        task=problem.task,
        question=problem.question,
        answer=problem.answer,
        checker=problem.checker,
        model=engine.model.name,
        revision=engine.model.revision,
        seed=seed,
        config_hash=config_hash(config),
        rounds=growth.rounds,
        nodes=nodes,
        trajectories=list(growth.trajectories.values()),
        prompt_tokens=growth.prompt_tokens,
        generated_tokens=growth.generated_tokens,
        metadata_json=problem.metadata_json,
    )
