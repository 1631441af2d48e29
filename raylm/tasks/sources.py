"""Problems from reasoning-gym tasks and from datasets on disk or the hub."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from raylm.errors import UserError
from raylm.records import Problem
from raylm.tasks import files, procedural
from raylm.tasks.answers import normalize_question
from raylm.tasks.config import SourceConfig


def load_problems(sources: Sequence[SourceConfig]) -> list[Problem]:
    """The problems of all sources, in their order; a function of the sources and their files alone.

    Raises:
        UserError: a source cannot be read, a row is malformed, an id is used twice, or a checker cannot be imported.
    """
    drawn = [source for source in sources if source.kind == "reasoning_gym"]
    batches = iter(procedural.draw(drawn) if drawn else ())
    problems: list[Problem] = []
    for source in sources:
        problems += next(batches) if source.kind == "reasoning_gym" else files.read(source)
    _refuse_repeated_ids(problems)
    _try_own_checkers({problem.checker: problem for problem in problems if ":" in problem.checker})
    return problems


def overlap(train: Sequence[Problem], evaluation: Sequence[Problem]) -> list[Problem]:
    """The training problems whose question, case, spacing and punctuation aside, is an evaluation question."""
    held_out = {normalize_question(problem.question) for problem in evaluation}
    return [problem for problem in train if normalize_question(problem.question) in held_out]


def short(question: str) -> str:
    """A question's first 80 characters, for messages."""
    return question if len(question) < 80 else question[:77] + "..."


def _refuse_repeated_ids(problems: Sequence[Problem]) -> None:
    repeated = [name for name, count in collections.Counter(item.id for item in problems).items() if count > 1]
    if repeated:
        tasks = sorted({item.task for item in problems if item.id in set(repeated)})
        raise UserError(
            f"{len(repeated)} problem ids are used twice over the sources {', '.join(tasks)} (first: "
            f"{', '.join(repeated[:3])}); give every source a name of its own and parts that do not overlap"
        )


def _try_own_checkers(first_problems: dict[str, Problem]) -> None:
    from raylm.tasks.verify import try_checker

    for problem in first_problems.values():
        try_checker(problem)
