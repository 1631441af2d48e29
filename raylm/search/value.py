"""What a finished response is worth to the search: a mix of the verifier, self-consistency and a reward model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from raylm.records import Trajectory
from raylm.search.config import ValueConfig
from raylm.search.strategies import ballot


class Scorer(Protocol):
    """A reward model; see `raylm.llm.reward`."""

    async def score(self, question: str, response: str) -> float:
        """How good a response is, in [0, 1]."""
        ...


def rewards(
    config: ValueConfig,
    trajectories: Mapping[int, Trajectory],
    shares: Mapping[str, float],
    scores: Mapping[int, float],
) -> dict[int, float | None]:
    """The reward of every given trajectory by its terminal node; None where no part says anything.

    Args:
        config: weights.
        trajectories: by terminal node.
        shares: what `votes` says, for self-consistency.
        scores: the reward model's, by terminal node; a response that ran out of tokens has none and is worth 0.
    """
    found: dict[int, float | None] = {}
    for end, trajectory in trajectories.items():
        parts: list[tuple[float, float]] = []
        if trajectory.verdict != "unverifiable":
            parts.append((config.verifier, float(trajectory.verdict == "correct")))
        parts.append((config.consistency, shares.get(ballot(trajectory), 0.0)))
        parts.append((config.reward_model, scores.get(end, 0.0)))
        weight = sum(share for share, _ in parts)
        found[end] = sum(share * value for share, value in parts) / weight if weight else None
    return found


def votes(trajectories: Mapping[int, Trajectory], draws: Sequence[int]) -> dict[str, float]:
    """The share of `draws` that give each answer; responses without one count below the line only."""
    counts = Counter(ballot(trajectories[end]) for end in draws)
    return {answer: count / len(draws) for answer, count in counts.items() if answer}
