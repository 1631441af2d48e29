"""The mask: what it protects, exactly, and how it moves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.errors import UserError
from raylm.train.isolation import IsolatedAdamW, Isolation, IsolationConfig, Segment
from tests.train.stepping import OPTIONS, STEPS, flat, isolated, make_params, masks_of, named, set_grads, train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_without_a_mask_a_step_is_adamw_bit_for_bit():
    ours, theirs = make_params(), make_params()
    train(ours, isolated(ours, protect=0.0), 12)
    train(theirs, torch.optim.AdamW(theirs, fused=True, **OPTIONS), 12)
    for mine, reference in zip(ours, theirs, strict=True):
        assert torch.equal(mine, reference)


def test_full_protection_changes_nothing_after_the_first_mask():
    params = make_params()
    optimizer = isolated(params, protect=1.0, warmup=1)
    train(params, optimizer, 1)
    before = flat(params)
    train(params, optimizer, 8, start=1)
    assert all(torch.equal(now, old) for now, old in zip(flat(params), before, strict=True))


VARIANTS = [
    {},
    {"score": "theta_g"},
    {"score": "adam"},
    {"score": "moved"},
    {"normalise": "max"},
    {"normalise": "rank"},
    {"normalise": "none"},
    {"choose": "bottom"},
    {"choose": "random"},
    {"source": "static"},
    {"granularity": "row"},
    {"granularity": "tensor"},
    {"hysteresis": 3},
    {"on_release": "reset"},
    {"on_release": "decay"},
    {"sample": 50},
    {"exclude": ("t1",)},
    {"include": ("t0", "t2")},
    {"protect_schedule": "cosine"},
    {"refresh_schedule": "linear", "refresh_end": 9},
    {"measure_noise": True},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_protected_weights_stand_still_under_decay_and_the_rest_moves(changes):
    params = make_params()
    optimizer = isolated(params, **{"protect": 0.4, **changes})
    held = 0
    for step in range(20):
        masks, before = masks_of(optimizer.isolation), flat(params)
        set_grads(params, step)
        optimizer.step()
        known = {part.name: mask for part, mask in zip(optimizer.isolation.parts, masks, strict=True)}
        for number, (now, old) in enumerate(zip(flat(params), before, strict=True)):
            mask = known.get(f"t{number}")
            mask = torch.zeros_like(old, dtype=torch.bool) if mask is None else mask
            held += int(mask.sum())
            assert torch.equal(now[mask], old[mask])
            assert (now[~mask] != old[~mask]).all()
    assert held


@pytest.mark.parametrize("changes", [*VARIANTS, {"release_ramp": 2}, {"mask": "soft"}], ids=str)
def test_a_hooked_optimizer_does_the_same_bit_for_bit(changes):
    ours, theirs = make_params(), make_params()
    config = IsolationConfig(**{"refresh_every": 3, "warmup": 2, "protect": 0.3, **changes})
    fast, plain = IsolatedAdamW(ours, **OPTIONS), torch.optim.AdamW(theirs, fused=True, **OPTIONS)
    fast.isolate(Isolation(config, named(ours), steps=STEPS))
    hooked = Isolation(config, named(theirs), steps=STEPS)
    hooked.attach(plain)
    train(ours, fast, 20)
    train(theirs, plain, 20)
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
    assert hooked.log == fast.isolation.log


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.02, 0.9),
    st.integers(0, 3),
    st.sampled_from(["mean", "max", "none"]),
    st.sampled_from(["top", "bottom"]),
)
def test_a_mask_holds_the_share_it_should(protect, seed, normalise, choose):
    params = make_params(seed)
    optimizer = isolated(params, protect=protect, normalise=normalise, choose=choose)
    train(params, optimizer, 8)
    for row in optimizer.isolation.log:
        assert abs(row["density"] - protect) * row["parameters"] <= 1.0


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 0.9), st.integers(0, 3))
def test_ranks_give_every_tensor_its_own_share(protect, seed):
    params = make_params(seed)
    optimizer = isolated(params, protect=protect, normalise="rank")
    train(params, optimizer, 5)
    for row in optimizer.isolation.log:
        for number, param in enumerate(params):
            assert abs(row["layers"][f"t{number}"] - protect) * param.numel() <= 1.0


def test_the_mask_is_the_top_of_the_formula():
    """Against a few lines of numpy-like arithmetic on the whole history of gradients."""
    params = make_params()
    optimizer = isolated(params, protect=0.25, beta=0.9)
    averages = [torch.zeros(param.numel()) for param in params]
    for step in range(11):
        set_grads(params, step)
        for average, param in zip(averages, params, strict=True):
            average.mul_(0.9).add_(param.grad.view(-1) ** 2, alpha=0.1)
        optimizer.step()
    scores = [average / average.mean() for average in averages]
    count = round(0.25 * sum(len(score) for score in scores))
    threshold = torch.cat(scores).topk(count).values[-1]
    for mask, score in zip(masks_of(optimizer.isolation), scores, strict=True):
        assert (mask != (score >= threshold)).sum() <= 1  # sums in another order


def test_the_mask_follows_the_gradients():
    """What mattered first is released once other parameters have the large gradients."""
    param = torch.nn.Parameter(torch.zeros(10))
    optimizer = IsolatedAdamW([param], **OPTIONS)
    config = IsolationConfig(protect=0.2, warmup=5, refresh_every=30, beta=0.8)
    optimizer.isolate(Isolation(config, named([param]), steps=STEPS))
    masks = []
    for step in range(1, 36):
        loud = (0, 1) if step <= 5 else (7, 8)
        param.grad = torch.full((10,), 0.01)
        param.grad[list(loud)] = 1.0
        optimizer.step()
        if optimizer.isolation.refreshed_at == step:
            masks.append(masks_of(optimizer.isolation)[0].nonzero().view(-1).tolist())
    rows = optimizer.isolation.log
    assert masks == [[0, 1], [7, 8]]
    assert (rows[1]["entered"], rows[1]["released"], rows[1]["jaccard_previous"]) == (2, 2, 0.0)
    assert rows[0]["jaccard_previous"] is None


def test_what_any_task_needs_is_protected():
    """Tasks keep their own importance, also while another one trains."""
    param = torch.nn.Parameter(torch.zeros(10))
    optimizer = IsolatedAdamW([param], **OPTIONS)
    config = IsolationConfig(protect=0.2, warmup=5, refresh_every=5, scope="per_task")
    isolation = Isolation(config, named([param]), steps=STEPS)
    optimizer.isolate(isolation)
    for step in range(20):
        isolation.task = "first" if step < 10 else "second"
        param.grad = torch.full((10,), 0.01)
        param.grad[[0, 1] if step < 10 else [7, 8]] = 1.0
        optimizer.step()
    assert masks_of(isolation)[0].nonzero().view(-1).tolist() == [0, 1, 7, 8]
    assert isolation.importance.observed == {"first": 10, "second": 10}


def test_importance_is_normalised_within_a_tensor():
    """A tensor whose gradients are a thousand times larger does not take the whole mask."""
    params = [torch.nn.Parameter(torch.zeros(100)) for _ in range(2)]
    found = {}
    for normalise in ("mean", "none"):
        optimizer = isolated(params, protect=0.1, warmup=1, normalise=normalise)
        generator = torch.Generator().manual_seed(0)
        for param, scale in zip(params, (1.0, 1000.0), strict=True):
            param.grad = scale * torch.randn(100, generator=generator)
        optimizer.step()
        found[normalise] = optimizer.isolation.log[0]["layers"]
    assert all(0.04 <= density <= 0.16 for density in found["mean"].values())
    assert found["none"] == {"t0": 0.0, "t1": 0.2}


def test_importance_sees_gradients_before_clipping():
    params, clipped = make_params(), make_params()
    free, tight = isolated(params, protect=0.3), isolated(clipped, clip=0.01, protect=0.3)
    for step in range(4):
        for optimizer, group in ((free, params), (tight, clipped)):
            set_grads(group, step, scale=100.0)
            optimizer.step()
        assert tight.grad_norm == free.grad_norm > 100
    for left, right in zip(free.isolation.parts, tight.isolation.parts, strict=True):
        assert torch.equal(left.importance[""], right.importance[""])
        assert torch.equal(left.bits, right.bits)


def test_what_never_had_a_gradient_is_not_protected():
    params = [torch.nn.Parameter(torch.zeros(100))]
    optimizer = isolated(params, protect=0.5, warmup=1)
    params[0].grad = torch.zeros(100)
    params[0].grad[:10] = 1.0
    optimizer.step()
    assert masks_of(optimizer.isolation)[0].nonzero().view(-1).tolist() == list(range(10))


def test_equal_scores_do_not_swell_the_mask():
    params = [torch.nn.Parameter(torch.zeros(20_000))]
    optimizer = isolated(params, protect=0.1, warmup=1)
    params[0].grad = torch.ones(20_000)
    optimizer.step()
    assert optimizer.isolation.log[0]["density"] == pytest.approx(0.1, abs=0.01)


def test_padding_is_never_protected():
    param = torch.nn.Parameter(torch.zeros(16))
    optimizer = IsolatedAdamW([param], **OPTIONS)
    parts = [(param, [Segment("a", 0, 6, 0, (6,)), Segment("b", 6, 6, 0, (6,))])]
    optimizer.isolate(Isolation(IsolationConfig(protect=1.0, warmup=1), parts, steps=STEPS))
    for _ in range(2):
        param.grad = torch.ones(16)
        optimizer.step()
    row = optimizer.isolation.log[0]
    assert (row["parameters"], row["density"]) == (12, 1.0)
    assert param[0] == param[11] != param[12] == param[15]


def test_rows_are_protected_as_a_whole():
    params = make_params(shapes=((30, 7),))
    optimizer = isolated(params, protect=0.3, granularity="row")
    train(params, optimizer, 8)
    rows = masks_of(optimizer.isolation)[0].view(30, 7)
    assert torch.equal(rows.any(1), rows.all(1))
    assert rows.any(1).sum() == 9


def test_tensors_are_protected_as_a_whole():
    params = make_params(shapes=((10,), (10,), (10,)))
    optimizer = isolated(params, protect=0.34, granularity="tensor")
    train(params, optimizer, 8)
    assert sorted(bool(mask.all()) for mask in masks_of(optimizer.isolation)) == [False, False, True]


def test_a_static_mask_is_made_once():
    params = make_params()
    optimizer = isolated(params, protect=0.2, source="static")
    train(params, optimizer, 20)
    assert [row["step"] for row in optimizer.isolation.log] == [2]


def test_schedules_of_share_and_interval():
    params = make_params(shapes=((100, 10),))
    changes = {"protect_start": 0.1, "protect_schedule": "linear", "refresh_schedule": "linear", "refresh_end": 8}
    optimizer = isolated(params, protect=0.5, warmup=0.1, steps=40, **{**changes, "refresh_every": 0.05})
    train(params, optimizer, 40)
    log = optimizer.isolation.log
    assert [row["step"] for row in log] == [4, 7, 10, 14, 18, 23, 28, 34]
    assert [round(row["share"], 3) for row in log][:2] == [0.1, round(0.1 + 0.4 * 3 / 36, 3)]
    assert all(row["density"] == pytest.approx(row["share"], abs=1e-3) for row in log)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": 40}, "isolation.warmup=40: the first mask would come at the end of a run of 40 steps"),
        ({"refresh_every": 50}, "isolation.refresh_every=50 is more than the run's 40 steps"),
        (
            {"include": ("layers.*",)},
            r"isolation.include: no trainable tensor is called 'layers.\*'; names are like t0",
        ),
        ({"exclude": ("t9",)}, "isolation.exclude: no trainable tensor is called 't9'"),
        ({"exclude": ("t*",)}, "leave no tensor to protect"),
        ({"source": "file", "mask_file": "nowhere.safetensors"}, "nowhere.safetensors: no such file"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_a_remedy(changes, message):
    with pytest.raises(UserError, match=message):
        isolated(make_params(), **changes)


def test_an_optimizer_without_moments_is_refused():
    params = make_params()
    isolation = Isolation(IsolationConfig(score="adam", warmup=1), named(params), steps=STEPS)
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    isolation.attach(optimizer)
    set_grads(params, 0)
    with pytest.raises(ValueError, match="SGD keeps no exp_avg"):
        optimizer.step()


def test_a_gradient_that_is_not_finite_stops_before_anything_moves():
    params = make_params()
    optimizer = isolated(params, protect=0.1)
    train(params, optimizer, 4)
    before, importance = flat(params), [part.importance[""].clone() for part in optimizer.isolation.parts]
    params[0].grad[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="nan"):
        optimizer.step()
    assert all(torch.equal(now, old) for now, old in zip(flat(params), before, strict=True))
    assert all(
        torch.equal(part.importance[""], old) for part, old in zip(optimizer.isolation.parts, importance, strict=True)
    )


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_random_masks_overlap_near_their_floor(share):
    """With pure noise the overlap of independent masks is p / (2 - p)."""
    for choose in ("top", "random"):
        params = make_params(shapes=((20_000,),))
        optimizer = isolated(params, protect=share, warmup=1, refresh_every=1, beta=0.0, choose=choose)
        train(params, optimizer, 3)
        assert optimizer.isolation.log[1]["jaccard_previous"] == pytest.approx(share / (2 - share), abs=0.02)


def test_a_mask_costs_a_bit_and_importance_four_bytes():
    params = make_params(shapes=((1000, 80),))
    optimizer = isolated(params, protect=0.2)
    train(params, optimizer, 8)
    assert optimizer.isolation.bytes() == {"importance": 320_000, "mask": 10_000, "first": 10_000}
