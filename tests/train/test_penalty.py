"""The pull towards earlier weights: its gradient, and its state in any division."""

import itertools

import pytest
import torch

from raylm.train.config import PenaltyConfig
from raylm.train.isolation import Segment, whole
from raylm.train.penalty import Penalty


def held(values, cuts=()):
    """A tensor of 12 elements cut into flat parameters, each with one element of padding."""
    found, ends = [], [0, *cuts, 12]
    for low, high in itertools.pairwise(ends):
        param = torch.nn.Parameter(torch.cat([values[low:high], torch.zeros(1)]))
        found.append((param, [Segment("t", 0, high - low, low, (12,))]))
    return found


def grads(parts, gradient):
    for param, (segment,) in parts:
        param.grad = torch.zeros_like(param)
        param.grad[: segment.length] = gradient[segment.offset : segment.offset + segment.length]


def total(parts):
    return torch.cat([param.grad[: segment.length] for param, (segment,) in parts])


def move(parts, values):
    for param, (segment,) in parts:
        param.data[: segment.length] = values[segment.offset : segment.offset + segment.length]


START, NOW = torch.arange(12.0), torch.arange(12.0) + torch.linspace(-1, 1, 12)


@pytest.mark.parametrize("cuts", [(), (5,), (3, 8)])
def test_the_pull_to_the_start_is_the_gradient_of_half_the_squares(cuts):
    parts = held(START, cuts)
    penalty = Penalty(PenaltyConfig(kind="l2_init", weight=0.3), parts)
    move(parts, NOW)
    grads(parts, torch.ones(12))
    penalty.add()
    assert torch.allclose(total(parts), 1 + 0.3 * (NOW - START))


@pytest.mark.parametrize("cuts", [(), (5,), (3, 8)])
def test_consolidation_pulls_by_squared_gradients_of_the_tasks_before(cuts):
    parts = held(START, cuts)
    penalty = Penalty(PenaltyConfig(kind="ewc", weight=0.3), parts)
    first = torch.linspace(0, 2, 12)
    for factor in (1.0, 2.0):
        grads(parts, factor * first)
        penalty.add()
        assert torch.equal(total(parts), factor * first)  # the first task is free
    penalty.settle()
    move(parts, NOW)
    grads(parts, torch.ones(12))
    penalty.add()
    fisher = first**2 / (first**2).mean()
    assert torch.allclose(total(parts), 1 + 0.3 * fisher * (NOW - START))
    penalty.settle()  # two tasks: both count, and the pull is to where the second ended
    move(parts, NOW + 1)
    grads(parts, torch.zeros(12))
    penalty.add()
    assert torch.allclose(total(parts), 0.3 * (fisher + 1), atol=1e-6)


def test_a_state_goes_into_another_division():
    one, other = held(START, (5,)), held(START, (2, 9))
    first = Penalty(PenaltyConfig(kind="ewc", weight=0.3), one)
    grads(one, torch.linspace(0, 2, 12))
    first.add()
    first.settle()
    grads(one, torch.linspace(1, 0, 12))
    first.add()
    second = Penalty(PenaltyConfig(kind="ewc", weight=0.3), other)
    second.load_state_dict([first.state_dict()])
    for parts, penalty in ((one, first), (other, second)):
        move(parts, NOW)
        grads(parts, torch.ones(12))
        penalty.add()
        penalty.settle()
        move(parts, START)
        grads(parts, torch.ones(12))
        penalty.add()
    assert torch.allclose(total(one), total(other))


def test_it_works_on_whole_tensors_of_any_shape():
    params = [torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(2))]
    penalty = Penalty(PenaltyConfig(weight=2.0), whole((str(n), param) for n, param in enumerate(params)))
    for param in params:
        param.data += 1
        param.grad = torch.zeros_like(param)
    penalty.add()
    assert all(torch.equal(param.grad, torch.full_like(param, 2.0)) for param in params)
