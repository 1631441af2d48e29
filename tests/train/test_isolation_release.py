"""How protection ends, soft masks, and what the log says of how masks move."""

import pytest
import torch

from raylm.train.isolation import IsolatedAdamW, Isolation, IsolationConfig
from tests.train.stepping import OPTIONS, STEPS, flat, isolated, make_params, named, set_grads, train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_hysteresis_releases_later():
    found = {}
    for wait in (1, 3):
        params = make_params()
        optimizer = isolated(params, protect=0.2, hysteresis=wait, beta=0.0)
        train(params, optimizer, 20)
        found[wait] = [row["released"] for row in optimizer.isolation.log]
    assert found[1][1] > 0
    assert found[3][:3] == [0, 0, 0]
    assert found[3][3] > 0


@pytest.mark.parametrize(("rule", "left"), [("keep", 1.0), ("decay", 0.25), ("reset", 0.0)])
def test_moments_of_what_is_released(rule, left):
    param = torch.nn.Parameter(torch.zeros(10))
    optimizer = IsolatedAdamW([param], **OPTIONS)
    config = IsolationConfig(protect=0.2, warmup=1, refresh_every=1, beta=0.0, on_release=rule, release_decay=0.25)
    optimizer.isolate(Isolation(config, named([param]), steps=STEPS))
    for loud in ([0, 1], [7, 8]):
        param.grad = torch.full((10,), 0.01)
        param.grad[loud] = 1.0
        optimizer.step()
    moment = optimizer.state[param]["exp_avg"]
    assert torch.allclose(moment[:2], torch.full((2,), left * (0.9 * 0.1 + 0.1 * 0.01)))
    assert torch.allclose(moment[3], torch.tensor(0.9 * 0.001 + 0.001))


def test_a_released_parameter_comes_back_to_whole_steps():
    param = torch.nn.Parameter(torch.zeros(10))
    optimizer = IsolatedAdamW([param], lr=0.01, betas=(0.0, 0.0), weight_decay=0.0)  # every step is lr times the sign
    config = IsolationConfig(protect=0.2, warmup=1, refresh_every=5, beta=0.0, release_ramp=3)
    optimizer.isolate(Isolation(config, named([param]), steps=STEPS))
    moved = []
    for step in range(12):
        before = param.detach().clone()
        param.grad = torch.full((10,), 0.5)
        param.grad[[0, 1] if step < 1 else [7, 8]] = 1.0
        optimizer.step()
        moved.append(float(before[0] - param.detach()[0]) / 0.01)
    assert moved == pytest.approx([1.0, 0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0], abs=1e-4)


def test_a_soft_mask_shortens_steps_by_importance():
    param = torch.nn.Parameter(torch.zeros(100))
    optimizer = IsolatedAdamW([param], lr=0.01, betas=(0.0, 0.0), weight_decay=0.0)
    config = IsolationConfig(protect=0.1, warmup=1, refresh_every=30, mask="soft", alpha=0.8)
    optimizer.isolate(Isolation(config, named([param]), steps=STEPS))
    for _ in range(2):
        before = param.detach().clone()
        param.grad = torch.linspace(0.1, 3.0, 100)
        optimizer.step()
    length = (before - param.detach()) / 0.01
    assert (length[1:] <= length[:-1] + 1e-6).all()
    scores = torch.linspace(0.1, 3.0, 100) ** 2
    scores /= scores.mean()
    expected = 1 - 0.8 * torch.sigmoid(scores - scores.topk(10).values[-1])
    assert torch.allclose(length, expected, atol=1 / 255)


def test_noise_is_measured_beside_the_drift():
    """With the same importance all along, only noise keeps masks apart; when it moves, overlap falls below that."""
    weights = torch.linspace(0.2, 3.0, 20_000)
    found = {}
    for moving in (False, True):
        params = make_params(shapes=((20_000,),))
        optimizer = isolated(params, protect=0.2, warmup=10, refresh_every=20, beta=0.9, measure_noise=True)
        for step in range(STEPS):
            set_grads(params, step)
            params[0].grad *= weights.flip(0) if moving and step > 10 else weights
            optimizer.step()
        found[moving] = optimizer.isolation.log[-1]
    still, moved = found[False], found[True]
    assert still["halves_first"] == pytest.approx(still["noise_ceiling"], abs=0.08)
    assert moved["halves_first"] < 0.5 * moved["noise_ceiling"]


def test_noise_is_not_measured_before_both_halves_have_seen_a_step():
    """The first mask comes after one step; the second is then the first of which there are two halves."""
    params = make_params()
    optimizer = isolated(params, protect=0.3, warmup=1, refresh_every=1, beta=0.9, measure_noise=True)
    train(params, optimizer, 6)
    first, *rest = optimizer.isolation.log
    assert (first["noise_ceiling"], first["halves_first"]) == (None, None)
    assert all(0 < row["halves_first"] <= 1 for row in rest)
    assert all(0 < row["noise_ceiling"] <= 1 for row in rest)


def test_measuring_noise_changes_no_mask():
    found = []
    for measure in (False, True):
        params = make_params()
        optimizer = isolated(params, protect=0.2, measure_noise=measure)
        train(params, optimizer, 20)
        found.append(flat(params))
    assert all(torch.equal(left, right) for left, right in zip(*found, strict=True))
