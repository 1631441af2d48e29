"""Problems of reasoning-gym's procedural tasks, the same in every process.

Some tasks iterate over sets, so what they draw depends on Python's hash seed. Problems are therefore drawn by a child
process whose hash seed is fixed; it also spares the caller the import of all tasks.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from raylm.errors import UserError
from raylm.records import Problem
from raylm.tasks.answers import normalize_question
from raylm.tasks.config import SourceConfig

_CHUNK = 1000
"""Draws of one seed. Some tasks draw all that they are asked for at once, and differently for another size."""
_TAGS = ("__tuple__", "__set__", "__dict__")


def draw(sources: Sequence[SourceConfig]) -> list[list[Problem]]:
    """The problems of each reasoning-gym source, distinct within a source.

    The problems of a shorter source are the first ones of a longer one with the same seed and params.

    Raises:
        UserError: a task or parameter is unknown, a value does not fit, or a task has too few distinct problems.
    """
    request = json.dumps([source.model_dump(mode="json") for source in sources], sort_keys=True)
    return [[Problem(**row) for row in rows] for rows in json.loads(_draw(request))]


def in_part(question: str, part: str) -> bool:
    """Whether a question belongs to a part (`all`, `train`, `test`); a function of the normalised question alone."""
    if part == "all":
        return True
    digest = hashlib.sha256(normalize_question(question).encode()).digest()
    return (digest[0] % 4 == 0) == (part == "test")


def pack(value: Any) -> Any:
    """Plain JSON data from which `unpack` restores tuples, sets and keys that are no strings.

    Raises:
        TypeError: a value of another kind.
    """
    if isinstance(value, tuple):
        return {"__tuple__": [pack(item) for item in value]}
    if isinstance(value, (set, frozenset)):
        return {"__set__": sorted((pack(item) for item in value), key=json.dumps)}
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) and key not in _TAGS for key in value):
            return {key: pack(item) for key, item in value.items()}
        return {"__dict__": [[pack(key), pack(item)] for key, item in value.items()]}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"cannot store a {type(value).__name__}")


def unpack(value: Any) -> Any:
    """What `pack` was given."""
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tuple__" in value:
        return tuple(unpack(item) for item in value["__tuple__"])
    if "__set__" in value:
        return {unpack(item) for item in value["__set__"]}
    if "__dict__" in value:
        return {unpack(key): unpack(item) for key, item in value["__dict__"]}
    return {key: unpack(item) for key, item in value.items()}


@functools.lru_cache(maxsize=32)
def _draw(request: str) -> str:
    child = subprocess.run(
        [sys.executable, "-c", "from raylm.tasks.procedural import main; main()"],
        input=request,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if child.returncode:
        raise RuntimeError(f"drawing problems failed with exit code {child.returncode}: {child.stderr[-2000:]}")
    return _problems(child.stdout)


def _problems(reply: str) -> str:
    found = json.loads(reply)
    if "error" in found:
        raise UserError(found["error"])
    return json.dumps(found["problems"])


def main() -> None:
    """Draw for the sources on standard input, and write their problems as JSON to standard output."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a task prints must not mix with the problems
    json.dump(answer(sys.stdin.read()), output)
    output.close()


def answer(request: str) -> dict[str, Any]:
    """What the child process says to a request: `problems` of each source as plain data, or the `error` of a user."""
    try:
        sources = [SourceConfig(**source) for source in json.loads(request)]
        return {"problems": [[dataclasses.asdict(item) for item in _distinct(source)] for source in sources]}
    except UserError as error:
        return {"error": str(error)}


def _distinct(source: SourceConfig) -> Iterator[Problem]:
    """`limit` problems after `offset`, repeated questions drawn again."""
    wanted = source.offset + source.limit
    patience = 200 + 20 * wanted  # uniform draws miss the last of `wanted` questions so often with probability e^-20
    seen: set[str] = set()
    idle = 0
    for index, seed, entry in _entries(source):
        key = " ".join(entry["question"].split())
        idle += 1
        if key not in seen and in_part(entry["question"], source.part):
            idle = 0
            seen.add(key)
            if len(seen) > source.offset:
                yield _problem(source, index, seed, entry)
        if len(seen) == wanted:
            return
        if idle == patience:
            raise UserError(
                f"source {source.name}: {index + 1} draws gave only {len(seen)} distinct problems, {wanted} were asked "
                "for; widen params or lower limit"
            )


def _entries(source: SourceConfig) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(index, seed of its chunk, entry) without end."""
    chunk = 0
    while True:
        # Consecutive seeds share all problems but one (entry i is drawn with seed + i): spread them.
        digest = hashlib.sha256(f"{source.task or source.name}:{source.seed}:{chunk}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big") >> 2
        dataset = _dataset(source, seed)
        for place in range(_CHUNK):
            try:
                entry = dataset[place]
            except Exception as error:  # whatever a task raises, these parameters made it
                raise UserError(
                    f"source {source.name}: task {source.task or source.name} fails with params "
                    f"{json.dumps(source.params)}: {type(error).__name__}: {error}"
                ) from error
            yield chunk * _CHUNK + place, seed, entry
        chunk += 1


def _problem(source: SourceConfig, index: int, seed: int, entry: dict[str, Any]) -> Problem:
    name, checker = f"source {source.name}", "task" if source.checker == "auto" else source.checker
    if entry["answer"] is None and checker != "task":
        raise UserError(f"{name}: this task has no single right answer; its checker must be task, not {checker}")
    task = source.task or source.name
    try:
        stored = pack({"task": task, "params": source.params, "seed": seed, "entry": entry})
    except TypeError as error:
        raise UserError(f"{name}: task {task} cannot be used: {error} of its entries") from None
    return Problem(
        id=f"{source.name}-s{source.seed}-{index:06d}",
        task=source.name,
        question=entry["question"],
        answer="" if entry["answer"] is None else str(entry["answer"]),
        checker=checker,
        metadata_json=json.dumps(stored, sort_keys=True),
    )


def _dataset(source: SourceConfig, seed: int) -> Any:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    task, name = source.task or source.name, f"source {source.name}"
    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=3)
        raise UserError(
            f"{name}: no reasoning-gym task {task!r}"
            + (f"; did you mean {' or '.join(close)}?" if close else "; reasoning_gym.factory.DATASETS lists them")
        )
    known = sorted({item.name for item in dataclasses.fields(DATASETS[task][1])} - {"seed", "size"})
    for key in source.params:
        if key in ("seed", "size"):
            raise UserError(f"{name}: params.{key} is set by the source's {'seed' if key == 'seed' else 'limit'}")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
            raise UserError(f"{name}: task {task} has no parameter {key!r}; {hint}")

    def make(params: dict[str, Any]) -> Any:
        return reasoning_gym.create_dataset(task, size=_CHUNK, seed=seed, **params)

    try:
        return make(source.params)
    except Exception as error:  # tasks check their parameters with assert, comparisons and whatever else
        guilty = [key for key in source.params if _works(make, {**source.params}, key)]
        shown = ", ".join(f"params.{key}={source.params[key]!r}" for key in guilty or source.params)
        raise UserError(
            f"{name}: {shown or 'no params'} does not fit task {task}: {error or type(error).__name__}"
        ) from error


def _works(make: Any, params: dict[str, Any], without: str) -> bool:
    """Whether the parameters are accepted once one of them keeps its default."""
    del params[without]
    try:
        make(params)
    except Exception:  # another one is wrong as well; the caller then names all
        return False
    return True
