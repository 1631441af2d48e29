"""The reward service: scores of responses, with the dimensions that they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raylm.errors import UserError
from raylm.serve.config import RewardSource
from raylm.serve.service import Service
from raylm.serve.versions import Source, verify

if TYPE_CHECKING:
    from raylm.srm.model import RewardModel, Score

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """Responses to one prompt."""

    name: str
    prompt: Prompt
    responses: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.responses)


@dataclass(frozen=True, slots=True)
class Scored:
    """Their scores, by one version of the model."""

    revision: str
    scores: tuple[Score, ...]
    probabilities: tuple[float, ...]


class RewardBackend(Protocol):
    """Where scores come from: this process, or another deployment."""

    async def score(self, name: str, prompt: Prompt, responses: Sequence[str]) -> Scored:
        """Scores of some responses to one prompt."""
        ...


class RewardService(Service["RewardModel"]):
    """Reward models in this process."""

    kind = "reward"

    async def score(self, name: str, prompt: Prompt, responses: Sequence[str]) -> Scored:
        """Scores of some responses to one prompt.

        Raises:
            ApiError: 400 for a text that the model refuses; 503 when the model cannot be loaded.
        """
        scored: Scored = await self.submit(ScoreJob(name, prompt, tuple(responses)))
        return scored

    def run_batch(self, model: RewardModel, name: str, jobs: list[ScoreJob]) -> list[Scored]:
        """Score all pairs of all jobs in one call."""
        scores = iter(model.score_batch([(job.prompt, response) for job in jobs for response in job.responses]))
        found = []
        for job in jobs:
            own = tuple(next(scores) for _ in job.responses)
            found.append(Scored(model.revision, own, tuple(model.probability(score.score) for score in own)))
        self.metrics.truncated.inc(sum(score.truncated for each in found for score in each.scores), model=name)
        return found

    def describe(self, name: str) -> tuple[str | None, dict[str, Any]]:
        """Revision and facts of the version in memory."""
        model = self.versions.peek(name)
        return (model.revision, {"dimensions": list(model.dimensions)}) if model else (None, {})


def sources(given: Mapping[str, RewardSource], threads: int, gpus: float) -> dict[str, Source[RewardModel]]:
    """Reward models to be loaded from their directories.

    Raises:
        UserError: a directory is not there.
    """
    found = {}
    for name, item in given.items():
        path = Path(item.path).expanduser().absolute()
        if not path.is_dir():
            raise UserError(f"reward.{name}.path={item.path}: no such directory")
        found[name] = Source(lambda path=path, item=item: _load(path, item, threads, gpus), (path,))  # type: ignore[misc]
    return found


def _load(path: Path, item: RewardSource, threads: int, gpus: float) -> RewardModel:
    import torch

    from raylm.srm.model import RewardModel

    torch.set_num_threads(threads)
    real = path.resolve()  # a link may be pointed elsewhere while its files are read
    verify(real)
    model = RewardModel.load(real, device="cuda" if gpus else "cpu")
    if item.revision not in (None, model.revision):
        raise UserError(
            f"{path}: its revision is {model.revision}, and {item.revision} is asked for; copy the model again"
        )
    model.score("Is the model whole?", ["It answers."])  # what cannot score must not replace what can
    return model
