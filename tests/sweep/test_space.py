"""Search spaces: every point lies in its space, conditions hold, and all ways to make points agree."""

import json
import math

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.config import build
from raylm.errors import UserError
from raylm.sweep import space as spaces
from raylm.sweep.config import ParameterConfig

optuna.logging.set_verbosity(optuna.logging.WARNING)
numbers = st.floats(-1e3, 1e3, allow_nan=False)


def parameter(**given_):
    return build(ParameterConfig, given_)


@st.composite
def parameters(draw):
    kind = draw(st.sampled_from(["choice", "uniform", "loguniform", "quniform", "integer"]))
    if kind == "choice":
        values = draw(st.lists(st.one_of(st.integers(), st.booleans(), st.text(max_size=3)), min_size=1, max_size=4))
        return parameter(choice=list({repr(value): value for value in values}.values()))
    if kind == "integer":
        low = draw(st.integers(-50, 50))
        return parameter(integer=[low, low + draw(st.integers(1, 50))])
    low = draw(st.floats(1e-3, 10)) if kind == "loguniform" else draw(numbers)
    high = low + draw(st.floats(1e-2, 1e3))
    if kind == "quniform":
        return parameter(quniform=[low, high, (high - low) / draw(st.floats(1, 20))])
    return parameter(**{kind: [low, high]})


def inside(held, value):
    if held.choice is not None:
        return any(value is each or (type(value) is type(each) and value == each) for each in held.choice)
    low, high, step = spaces.bounds(held)
    at_step = not step or math.isclose((value - low) / step, round((value - low) / step), abs_tol=1e-6)
    whole = held.integer is None or isinstance(value, int)
    return low - 1e-9 <= value <= high + 1e-9 and at_step and whole


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), parameters(), min_size=1), st.integers(0, 99))
def test_points_lie_in_the_space_however_they_are_made(space, seed):
    random = np.random.default_rng(seed)
    point = spaces.draw(space, random)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    spaces.suggest(space, trial)
    for made in (point, spaces.decoded(space, trial.params), spaces.perturb(space, point, random, 0.2)):
        assert list(made) == list(space)
        assert all(inside(space[name], value) for name, value in made.items())
        assert json.loads(json.dumps(made)) == made


def test_equal_seeds_draw_equal_points_and_logarithms_spread_evenly():
    space = {"lr": parameter(loguniform=[1e-4, 1e-1])}
    draws = [[spaces.draw(space, random)["lr"] for _ in range(600)] for random in map(np.random.default_rng, (1, 1, 2))]
    assert draws[0] == draws[1] != draws[2]
    below = np.mean(np.array(draws[0]) < 10**-2.5)
    assert 0.43 < below < 0.57  # half of the decades, half of the draws


CONDITIONAL = {
    "kind": parameter(choice=["none", "uniform", "keyword"]),
    "alpha": parameter(choice=[0.1, 0.2], when={"kind": ["uniform", "keyword"]}),
    "temperature": parameter(choice=[1, 2, 3], when={"kind": "keyword", "alpha": 0.2}),
}


def test_a_grid_has_every_point_whose_conditions_hold_once():
    points = spaces.grid(CONDITIONAL)
    assert len(points) == 1 + 2 + 1 + 3
    assert len({json.dumps(point) for point in points}) == len(points)
    assert {"kind": "none"} in points
    assert {"kind": "keyword", "alpha": 0.2, "temperature": 3} in points
    drawn = {json.dumps(spaces.draw(CONDITIONAL, random)) for random in map(np.random.default_rng, range(300))}
    assert drawn == {json.dumps(point) for point in points}


def test_a_perturbed_point_keeps_conditions_and_moves_numbers_by_a_fifth():
    space = {"lr": parameter(loguniform=[1e-4, 1.0]), **CONDITIONAL}
    random = np.random.default_rng(0)
    for _ in range(100):
        near = spaces.perturb(space, {"lr": 0.01, "kind": "uniform", "alpha": 0.1}, random, 0.0)
        assert near["lr"] == pytest.approx(0.008) or near["lr"] == pytest.approx(0.012)
        assert ("alpha" in near) == (near["kind"] != "none")
    assert spaces.perturb(space, {"lr": 1.0, "kind": "none"}, random, 0.0)["lr"] <= 1.0


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            {"b": parameter(uniform=[0, 1], when={"a": 1})},
            r"space\.b: its condition is on a, which does not stand before",
        ),
        (
            {"a": parameter(choice=["x", "y"]), "b": parameter(uniform=[0, 1], when={"a": ["x", "z"]})},
            r"space\.b: a is never 'z'; it is one of x, y",
        ),
    ],
)
def test_conditions_that_cannot_hold_are_refused(space, words):
    with pytest.raises(UserError, match=words):
        spaces.check(space)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "exactly one of choice, grid, .*, not none"),
        ({"uniform": [0, 1], "choice": [1]}, "exactly one of .* not choice and uniform"),
        ({"uniform": [1, 0]}, r"low 1.0 must be below high 0.0"),
        ({"loguniform": [0, 1]}, "low 0.0 must be above 0"),
        ({"quniform": [0, 1, 2]}, "step 2.0 must be above 0 and at most high - low"),
        ({"choice": [1, 1]}, "a value twice"),
        ({"choice": []}, "choice"),
        ({"uniform": [0, float("nan")]}, "must be below"),
        ({"uniform": [0, 1], "wen": {}}, "unknown key wen; did you mean when"),
    ],
)
def test_malformed_parameters_are_refused(data, words):
    with pytest.raises(UserError, match=words):
        build(ParameterConfig, data)


def test_dotted_keys_nest_and_merge():
    data = spaces.nested({"a.b": 1, "a.c.d": 2, "e": 3})
    assert data == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    base = {"a": {"b": 0, "x": 9}, "f": [1]}
    assert spaces.merged(base, data) == {"a": {"b": 1, "x": 9, "c": {"d": 2}}, "f": [1], "e": 3}
    assert base == {"a": {"b": 0, "x": 9}, "f": [1]}
