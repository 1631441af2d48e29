"""Points of a search space: drawn, enumerated, suggested by Optuna, or moved a little."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from raylm.errors import UserError
from raylm.sweep.config import ParameterConfig

Space = Mapping[str, ParameterConfig]
Point = dict[str, Any]
"""Dotted key to its value, for the parameters whose conditions hold."""


class Suggests(Protocol):
    """What is used of an Optuna trial."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float: ...
    def suggest_int(self, name: str, low: int, high: int) -> int: ...
    def suggest_categorical(self, name: str, choices: list[str]) -> str: ...


def check(space: Space) -> None:
    """Refuse conditions that cannot hold.

    Raises:
        UserError: a condition is on a key that does not stand before its parameter, or on a value that it never has.
    """
    known: dict[str, ParameterConfig] = {}
    for name, parameter in space.items():
        for key, wanted in parameter.when.items():
            if key not in known:
                raise UserError(
                    f"space.{name}: its condition is on {key}, which does not stand before it in the space; "
                    "put that parameter first, or set the key in base and leave the condition out"
                )
            values = known[key].choice or known[key].grid
            for value in _values(wanted):
                if values is not None and value not in values:
                    raise UserError(
                        f"space.{name}: {key} is never {value!r}; it is one of {', '.join(map(str, values))}"
                    )
        known[name] = parameter


def walk(space: Space, pick: Callable[[str, ParameterConfig], Any]) -> Point:
    """A point whose values `pick` gives, parameter by parameter; those whose conditions fail are left out."""
    point: Point = {}
    for name, parameter in space.items():
        if _holds(parameter, point):
            point[name] = pick(name, parameter)
    return point


def draw(space: Space, random: np.random.Generator) -> Point:
    """An independent point."""
    return walk(space, lambda name, parameter: _drawn(parameter, random))


def grid(space: Space) -> list[Point]:
    """Every point of a space of lists, each once."""

    def rest(names: list[str], point: Point) -> Iterator[Point]:
        if not names:
            yield dict(point)
            return
        name, parameter = names[0], space[names[0]]
        if not _holds(parameter, point):
            yield from rest(names[1:], point)
            return
        for value in parameter.choice or parameter.grid or ():
            yield from rest(names[1:], {**point, name: value})

    return list(rest(list(space), {}))


def suggest(space: Space, trial: Suggests) -> None:
    """Ask an Optuna trial for a point; `decoded` reads it. Values of a choice travel as JSON, whatever they are."""

    def pick(name: str, parameter: ParameterConfig) -> Any:
        if parameter.choice is not None:
            return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in parameter.choice]))
        if parameter.integer is not None:
            return trial.suggest_int(name, *parameter.integer)
        low, high, step = bounds(parameter)
        return trial.suggest_float(name, low, high, step=step, log=parameter.loguniform is not None)

    walk(space, pick)


def decoded(space: Space, raw: Mapping[str, Any]) -> Point:
    """The point that `suggest` asked for."""
    return {name: json.loads(value) if space[name].choice is not None else value for name, value in raw.items()}


def bounds(parameter: ParameterConfig) -> tuple[float, float, float | None]:
    """Low, high and step of a parameter of numbers; the high end is one that can be reached."""
    if parameter.quniform is not None:
        low, high, step = parameter.quniform
        return low, low + step * math.floor((high - low) / step + 1e-9), step
    low, high = parameter.uniform or parameter.loguniform or parameter.integer or (0.0, 0.0)
    return low, high, None


def perturb(space: Space, point: Point, random: np.random.Generator, resample: float) -> Point:
    """A point near another one, for population-based training.

    Numbers are multiplied by 0.8 or 1.2 and kept within their bounds, values of a list become a neighbour in it, and
    each parameter is with chance `resample` drawn anew instead. Source: Jaderberg et al. (2017), section 4.1.
    """

    def pick(name: str, parameter: ParameterConfig) -> Any:
        if name not in point or random.random() < resample:
            return _drawn(parameter, random)
        if parameter.choice is not None:
            place = parameter.choice.index(point[name]) + int(random.choice([-1, 1]))
            return parameter.choice[min(max(place, 0), len(parameter.choice) - 1)]
        low, high, step = bounds(parameter)
        moved = min(max(point[name] * float(random.choice([0.8, 1.2])), low), high)
        if parameter.integer is not None:
            return round(moved)
        return low + step * round((moved - low) / step) if step else moved

    return walk(space, pick)


def nested(point: Point) -> dict[str, Any]:
    """A point as the nested data of a config."""
    data: dict[str, Any] = {}
    for key, value in point.items():
        *parents, last = key.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return data


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested data with some of it changed."""
    out = dict(base)
    for key, value in changes.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return out


def _drawn(parameter: ParameterConfig, random: np.random.Generator) -> Any:
    if (values := parameter.choice or parameter.grid) is not None:
        return values[int(random.integers(len(values)))]
    if parameter.integer is not None:
        return int(random.integers(parameter.integer[0], parameter.integer[1] + 1))
    low, high, step = bounds(parameter)
    if parameter.loguniform is not None:
        return float(min(max(math.exp(random.uniform(math.log(low), math.log(high))), low), high))
    if step:
        return low + step * int(random.integers(round((high - low) / step) + 1))
    return float(random.uniform(low, high))


def _holds(parameter: ParameterConfig, point: Point) -> bool:
    return all(key in point and point[key] in _values(wanted) for key, wanted in parameter.when.items())


def _values(wanted: Any) -> list[Any]:
    return list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
