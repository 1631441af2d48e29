"""A search between two expansions: what it holds, its exact snapshot, and the record of a finished tree."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from raylm.config import config_hash
from raylm.records import Node, Problem, Trajectory, Tree
from raylm.search import policy, strategies
from raylm.search.config import ExploreConfig
from raylm.search.tree import OPEN, SearchTree
from raylm.units import unit_key

if TYPE_CHECKING:
    from raylm.llm.protocol import Engine


@dataclass(slots=True)
class Growth:
    """Everything that decides how a search goes on."""

    tree: SearchTree
    trajectories: dict[int, Trajectory] = field(default_factory=dict)
    """Every finished response by its terminal node, in the order found."""
    draws: list[int] = field(default_factory=list)
    """Terminal node of every completion, in order."""
    draw_tokens: list[int] = field(default_factory=list)
    """Tokens generated for each of `draws`."""
    verdicts: Counter[str] = field(default_factory=Counter)
    """Of the trajectories."""
    scores: dict[int, float] = field(default_factory=dict)
    """The reward model's, by terminal node."""
    pending: list[tuple[int, int]] = field(default_factory=list)
    """(number of the expansion, leaf) of what is in flight, oldest first."""
    plan: dict[str, Any] = field(default_factory=dict)
    """The strategy's memory, as JSON data."""
    expansions: int = 0
    """Started so far."""
    rounds: int = 0
    """Expansions that are backed up."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    """Spent on the search, over all processes; no part of the result."""
    cached_tokens: int = 0
    """Prompt tokens that the engine spared since this process took the search up; no part of the result."""

    def snapshot(self) -> dict[str, Any]:
        """The search as JSON data, exactly; samples in flight are asked for again by who restores it."""
        return {
            "tree": self.tree.state(),
            "trajectories": [[end, asdict(found)] for end, found in self.trajectories.items()],
            "scores": list(self.scores.items()),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    @classmethod
    def restore(cls, config: ExploreConfig, snapshot: dict[str, Any] | None) -> Growth:
        """The search of a snapshot, or a new one."""
        limits = policy.limits(config.search)
        if snapshot is None:
            return cls(SearchTree(limits))
        growth = cls(SearchTree.from_state(limits, snapshot["tree"]))
        growth.trajectories = {end: Trajectory(**found) for end, found in snapshot["trajectories"]}
        growth.verdicts = Counter(found.verdict for found in growth.trajectories.values())
        growth.scores = dict(snapshot["scores"])
        for name in _PLAIN:
            setattr(growth, name, snapshot[name])
        growth.pending = [(number, leaf) for number, leaf in growth.pending]
        for _, leaf in growth.pending:
            growth.tree.mark(leaf, config.search.samples)
        return growth

    def finished(self, config: ExploreConfig) -> bool:
        """Whether no further expansion starts."""
        return policy.finished(
            config.search,
            self.verdicts,
            expansions=self.expansions,
            tokens=self.generated_tokens,
            nodes=len(self.tree),
            seconds=self.seconds,
        )


_PLAIN = (
    "draws",
    "draw_tokens",
    "pending",
    "plan",
    "expansions",
    "rounds",
    "prompt_tokens",
    "generated_tokens",
    "seconds",
)


def tree_id(config: ExploreConfig, problem_id: str, seed: int) -> str:
    """Identity of a tree: equal for equal config, seed and problem id."""
    return unit_key("tree", config_hash(config), seed, problem_id)


def record(growth: Growth, problem: Problem, engine: Engine, config: ExploreConfig, seed: int) -> Tree:
    """The tree as it is stored."""
    places = {end: place for place, end in enumerate(growth.trajectories)}
    picked = strategies.make(config.search).pick(growth)
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
        strategy=config.search.strategy,
        rounds=growth.rounds,
        nodes=_nodes(growth.tree),
        trajectories=list(growth.trajectories.values()),
        draws=[places[end] for end in growth.draws],
        draw_tokens=list(growth.draw_tokens),
        picked=-1 if picked is None else places[picked],
        prompt_tokens=growth.prompt_tokens,
        generated_tokens=growth.generated_tokens,
        metadata_json=problem.metadata_json,
    )


def _nodes(tree: SearchTree) -> list[Node]:
    columns = {name: tree.column(name).tolist() for name in ("parent", "visits", "value_sum", "end", "round")}
    return [
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
