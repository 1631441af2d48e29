"""The mask: what it protects, exactly, and how it moves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.train.config import IsolationConfig
from raylm.train.isolation import IsolatedAdamW, Isolation, Segment

OPTIONS = {"lr": 0.05, "betas": (0.9, 0.95), "weight_decay": 0.1}


def _params(seed=0, shapes=((8, 5), (7,))):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def _grads(params, step, scale=1.0):
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        param.grad = scale * torch.randn(param.shape, generator=generator)


def _isolated(params, clip=0.0, **settings_):
    optimizer = IsolatedAdamW(params, clip=clip, **OPTIONS)
    parts = [(param, [Segment(f"t{i}", 0, param.numel())]) for i, param in enumerate(params)]
    optimizer.isolation = Isolation(IsolationConfig(**{"refresh_every": 3, "warmup": 2, **settings_}), parts)
    return optimizer


def _train(params, optimizer, steps, start=0):
    rows = []
    for step in range(start, steps):
        _grads(params, step)
        optimizer.step()
        isolation = getattr(optimizer, "isolation", None)
        if isolation is not None and isolation.due(step + 1):
            rows.append(isolation.refresh(step + 1))
    return rows


def test_without_a_mask_a_step_is_adamw_bit_for_bit():
    ours, theirs = _params(), _params()
    _train(ours, _isolated(ours, protect=0.0), 12)
    _train(theirs, torch.optim.AdamW(theirs, fused=True, **OPTIONS), 12)
    for mine, reference in zip(ours, theirs, strict=True):
        assert torch.equal(mine, reference)


def test_full_protection_changes_nothing_after_the_first_mask():
    params = _params()
    optimizer = _isolated(params, protect=1.0, warmup=1)
    _train(params, optimizer, 1)
    before = [param.detach().clone() for param in params]
    _train(params, optimizer, 8, start=1)
    for param, old in zip(params, before, strict=True):
        assert torch.equal(param, old)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.02, 0.9), st.integers(0, 3))
def test_protected_weights_stand_still_under_decay_and_the_rest_moves(protect, seed):
    params = _params(seed)
    optimizer = _isolated(params, protect=protect)
    for step in range(12):
        masks = [part.mask for part in optimizer.isolation._parts]
        before = [param.detach().clone().view(-1) for param in params]
        _grads(params, step)
        optimizer.step()
        for param, old, mask in zip(params, before, masks, strict=True):
            now = param.detach().view(-1)
            held = torch.zeros_like(old, dtype=torch.bool) if mask is None else mask
            assert torch.equal(now[held], old[held])
            assert (now[~held] != old[~held]).all()
        if optimizer.isolation.due(step + 1):
            row = optimizer.isolation.refresh(step + 1)
            assert abs(row["density"] * row["parameters"] - protect * row["parameters"]) <= 1.0


def test_the_mask_follows_the_gradients():
    """What mattered first is released once other parameters have the large gradients."""
    param = torch.nn.Parameter(torch.zeros(10))
    optimizer = IsolatedAdamW([param], clip=0.0, **OPTIONS)
    config = IsolationConfig(protect=0.2, warmup=5, refresh_every=30, beta=0.8)
    optimizer.isolation = Isolation(config, [(param, [Segment("t", 0, 10)])])
    rows, masks = [], []
    for step in range(1, 36):
        loud = (0, 1) if step <= 5 else (7, 8)
        param.grad = torch.full((10,), 0.01)
        param.grad[list(loud)] = 1.0
        optimizer.step()
        if optimizer.isolation.due(step):
            rows.append(optimizer.isolation.refresh(step))
            masks.append(optimizer.isolation._parts[0].mask.nonzero().view(-1).tolist())
    assert masks == [[0, 1], [7, 8]]
    assert (rows[1]["entered"], rows[1]["released"], rows[1]["jaccard_previous"]) == (2, 2, 0.0)
    assert rows[0]["jaccard_previous"] is None


def test_importance_is_normalised_within_a_tensor():
    """A tensor whose gradients are a thousand times larger does not take the whole mask."""
    params = [torch.nn.Parameter(torch.zeros(100)) for _ in range(2)]
    optimizer = _isolated(params, protect=0.1, warmup=1)
    generator = torch.Generator().manual_seed(0)
    for param, scale in zip(params, (1.0, 1000.0), strict=True):
        param.grad = scale * torch.randn(100, generator=generator)
    optimizer.step()
    layers = optimizer.isolation.refresh(1)["layers"]
    assert all(0.04 <= density <= 0.16 for density in layers.values())


def test_importance_sees_gradients_before_clipping():
    params, clipped = _params(), _params()
    free, tight = _isolated(params, protect=0.3), _isolated(clipped, clip=0.01, protect=0.3)
    for optimizer, group in ((free, params), (tight, clipped)):
        _grads(group, 0, scale=100.0)
        optimizer.step()
    for left, right in zip(free.isolation._parts, tight.isolation._parts, strict=True):
        assert torch.equal(left.importance, right.importance)
    assert tight.grad_norm == free.grad_norm > 100


def test_padding_is_never_protected():
    flat = torch.nn.Parameter(torch.zeros(16))
    optimizer = IsolatedAdamW([flat], clip=0.0, **OPTIONS)
    parts = [(flat, [Segment("a", 0, 6), Segment("b", 6, 6)])]
    optimizer.isolation = Isolation(IsolationConfig(protect=1.0, warmup=1), parts)
    flat.grad = torch.ones(16)
    optimizer.step()
    row = optimizer.isolation.refresh(1)
    assert optimizer.isolation._parts[0].mask.tolist() == [True] * 12 + [False] * 4
    assert (row["parameters"], row["density"]) == (12, 1.0)


def test_a_resumed_run_makes_the_same_masks():
    whole = _params()
    whole_optimizer = _isolated(whole, protect=0.25)
    rows = _train(whole, whole_optimizer, 20)
    first = _params()
    optimizer = _isolated(first, protect=0.25)
    early = _train(first, optimizer, 9)
    second = [torch.nn.Parameter(param.detach().clone()) for param in first]
    resumed = _isolated(second, protect=0.25)
    resumed.load_state_dict(optimizer.state_dict())
    resumed.isolation.load_state_dict(optimizer.isolation.state_dict())
    late = _train(second, resumed, 20, start=9)
    assert early + late == rows
    for left, right in zip(whole, second, strict=True):
        assert torch.equal(left, right)


def test_state_of_another_model_is_refused():
    optimizer = _isolated(_params(), protect=0.1)
    other = _isolated(_params(shapes=((3, 3),)), protect=0.1)
    with pytest.raises(ValueError, match=r"parts of \[9\]"):
        optimizer.isolation.load_state_dict(other.isolation.state_dict())


def test_a_gradient_that_is_not_finite_stops_before_anything_moves():
    params = _params()
    optimizer = _isolated(params, protect=0.1)
    before = [param.detach().clone() for param in params]
    _grads(params, 0)
    params[0].grad[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="nan"):
        optimizer.step()
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([0.05, 0.2, 0.5]))
def test_random_masks_overlap_near_their_floor(share):
    """With pure noise the overlap of independent masks is p / (2 - p)."""
    masks = []
    for seed in range(2):
        param = torch.nn.Parameter(torch.zeros(20_000))
        isolation = Isolation(IsolationConfig(protect=share, warmup=1), [(param, [Segment("t", 0, 20_000)])])
        param.grad = torch.randn(20_000, generator=torch.Generator().manual_seed(seed))
        isolation.observe()
        isolation.refresh(1)
        masks.append(isolation._parts[0].mask)
    overlap = float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
    assert abs(overlap - share / (2 - share)) < 0.02
