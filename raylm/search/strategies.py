"""Where a search draws its next samples and which response it picks: four strategies, one budget, one record.

Every strategy samples whole responses below nodes of the same tree, so that what they find, what they cost and how
their rewards come about can be compared draw by draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from raylm.records import Trajectory
from raylm.search.config import SearchConfig
from raylm.search.tree import OPEN, SearchTree

if TYPE_CHECKING:
    from raylm.search.growth import Growth


class Strategy(Protocol):
    """Decides from what a tree holds. Its own memory, if it needs one, is `Growth.plan`: JSON data."""

    def next(self, growth: Growth) -> int | None:
        """The node to sample from next, already marked with virtual visits; None when there is none before what is
        in flight has come back."""
        ...

    def pick(self, growth: Growth) -> int | None:
        """Terminal node of the response that the search would answer with; None when it found none."""
        ...


def make(config: SearchConfig) -> Strategy:
    """The strategy that a config names."""
    if config.strategy == "mcts":
        return Mcts(config.samples)
    if config.strategy == "beam":
        return Beam(config.samples, config.beam)
    return Sampling(config.samples, vote=config.strategy == "majority")


class Mcts:
    """Selection by UCT or PUCT from the question down."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def next(self, growth: Growth) -> int | None:
        """See `Strategy.next`."""
        return None if growth.tree.exhausted() else growth.tree.select(self.samples)

    def pick(self, growth: Growth) -> int | None:
        """The response of the highest value."""
        return best(growth.trajectories, growth.draws)


class Beam:
    """Depth by depth: samples below each node of the beam, then keeps the `width` most valuable next steps.

    A step's value is that of the whole responses drawn through it, so that no model of the value of prefixes is
    needed.
    """

    def __init__(self, samples: int, width: int) -> None:
        self.samples, self.width = samples, width

    def next(self, growth: Growth) -> int | None:
        """See `Strategy.next`; a depth begins only when all samples of the one before it are backed up."""
        plan: dict[str, Any] = growth.plan
        if not plan:
            plan.update(beam=[0], place=0)
        if plan["place"] == len(plan["beam"]):
            if growth.pending:
                return None
            plan.update(beam=self._below(growth.tree, plan["beam"]), place=0)
        if not plan["beam"]:
            return None
        node = int(plan["beam"][plan["place"]])
        plan["place"] += 1
        growth.tree.mark(node, self.samples)
        return node

    def pick(self, growth: Growth) -> int | None:
        """The response of the highest value."""
        return best(growth.trajectories, growth.draws)

    def _below(self, tree: SearchTree, beam: Sequence[int]) -> list[int]:
        """The most valuable steps after those of the beam that may be sampled from; ties: likelier, then older."""
        steps = [child for node in beam for child in tree.children[node] if tree.column("end")[child] == OPEN]
        steps = [step for step in steps if tree.samplable(step)]
        steps.sort(key=lambda step: (-tree.value(step), -float(tree.column("logprob")[step]), step))
        return steps[: self.width]


class Sampling:
    """Independent responses to the question: best-of-N, or the most frequent answer (self-consistency)."""

    def __init__(self, samples: int, *, vote: bool) -> None:
        self.samples, self.vote = samples, vote

    def next(self, growth: Growth) -> int | None:
        """See `Strategy.next`."""
        growth.tree.mark(0, self.samples)
        return 0

    def pick(self, growth: Growth) -> int | None:
        """The response of the highest value, or the first with the most frequent answer."""
        choose = majority if self.vote else best
        return choose(growth.trajectories, growth.draws)


def best(trajectories: Mapping[int, Trajectory], draws: Sequence[int]) -> int | None:
    """Terminal node of the response of the highest reward; ties: drawn more often, likelier, found earlier."""
    counts = Counter(draws)
    finished = [end for end in trajectories if trajectories[end].finish_reason == "stop"]
    return max(
        finished or trajectories,
        key=lambda end: (trajectories[end].reward, counts[end], trajectories[end].logprob, -end),
        default=None,
    )


def majority(trajectories: Mapping[int, Trajectory], draws: Sequence[int]) -> int | None:
    """Terminal node of the first response with the most frequent answer (source: Wang et al. 2022); ties: seen first.

    Answers are compared as the verifier extracts them, up to white space and case; responses without one do not vote.
    """
    votes: Counter[str] = Counter()
    first: dict[str, int] = {}
    for end in draws:
        answer = ballot(trajectories[end])
        if answer:
            votes[answer] += 1
            first.setdefault(answer, end)
    return first[max(votes, key=lambda answer: votes[answer])] if votes else None


def ballot(trajectory: Trajectory) -> str:
    """The answer under which a response's vote counts; empty when it gives none."""
    return " ".join(trajectory.answer.casefold().split())
