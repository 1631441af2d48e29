"""Packed masks and numbers from hashes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raylm.train.isolation import bits
from raylm.train.isolation.importance import Growth
from raylm.train.isolation.select import best_units, largest, sampled

CPU = torch.device("cpu")


@given(st.lists(st.booleans(), max_size=70), st.integers(0, 9))
def test_packing_is_that_of_numpy_and_unpacking_undoes_it(values, skip):
    mask = torch.tensor([False] * skip + values, dtype=torch.bool)[skip:]
    packed = bits.pack(mask)
    assert packed.tolist() == np.packbits(np.array(values, dtype=bool), bitorder="little").tolist()
    assert bits.unpack(packed, len(values)).tolist() == values
    assert bits.ones(packed) == sum(values)


@given(st.lists(st.booleans(), min_size=1, max_size=70), st.data())
def test_a_window_is_a_slice(values, data):
    start = data.draw(st.integers(0, len(values) - 1))
    stop = data.draw(st.integers(start + 1, len(values)))
    packed = bits.pack(torch.tensor(values))
    assert bits.window(packed, start, stop).tolist() == values[start:stop]


@given(st.integers(1, 200), st.integers(0, 40), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_protected_values_are_put_back_bit_for_bit(count, start, dtype):
    """Signed zeros and what is not finite too."""
    draw = torch.Generator().manual_seed(count)
    odd = torch.tensor([0.0, -0.0, float("inf"), float("nan"), -1e-40]).to(dtype)
    old, new = (torch.where(torch.rand(count, generator=draw) < 0.3, odd[torch.randint(5, (count,), generator=draw)],
                            torch.randn(count, generator=draw).to(dtype)) for _ in range(2))  # fmt: skip
    mask = torch.rand(start + count, generator=draw) < 0.5
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[old.element_size()]
    expected = torch.where(mask[start:], old.view(kind), new.view(kind))
    bits.put_back(new, old, bits.pack(mask), start)
    assert torch.equal(new.view(kind), expected)


@given(st.floats(0.0, 0.9999), st.integers(1, 600))
def test_a_growing_sum_is_the_moving_average(beta, count):
    growth, average, held = Growth(beta), 0.0, torch.zeros(1)
    for step in range(1, count + 1):
        average = beta * average + (1 - beta) * step
        held = held * growth.shrink(step) + growth.weight(step) * step
        assert 1 <= growth.weight(step) < 2.0**41
    assert float(held) * growth.unit(count) == pytest.approx(average, rel=1e-3)


@given(st.integers(0, 5), st.integers(0, 400), st.integers(1, 100))
def test_hashed_numbers_depend_on_the_place_alone(seed, start, count):
    everything = bits.uniform(seed, "layer.weight", 0, 500, CPU)
    assert torch.equal(bits.uniform(seed, "layer.weight", start, count, CPU), everything[start : start + count])


def test_hashed_numbers_look_random():
    values = bits.uniform(3, "layer.weight", 0, 1_000_000, CPU)
    assert 0 <= float(values.min()) < float(values.max()) < 1
    assert np.histogram(values, 20)[0] == pytest.approx(50_000, rel=0.03)
    for lag in (1, 2, 3, 8, 64, 576):
        assert abs(np.corrcoef(values[lag:], values[:-lag])[0, 1]) < 0.005
    for seed, name in ((4, "layer.weight"), (3, "layer.bias")):
        assert abs(np.corrcoef(values, bits.uniform(seed, name, 0, 1_000_000, CPU))[0, 1]) < 0.005


SCORES = st.lists(st.floats(0, 2.0**100, width=32, allow_subnormal=False), min_size=1, max_size=60)


@given(st.lists(SCORES, min_size=1, max_size=3), st.data())
def test_the_threshold_is_the_kth_largest(groups, data):
    wanted = [data.draw(st.integers(0, len(group))) for group in groups]
    tensors = [torch.tensor(group) for group in groups]
    halves = [(n, part) for n, tensor in enumerate(tensors) for part in tensor.tensor_split(2)]
    thresholds, shares = largest(lambda: iter(halves), wanted)
    for tensor, want, threshold, share in zip(tensors, wanted, thresholds, shares, strict=True):
        if not want:
            assert threshold == float("inf")
            continue
        assert threshold == float(tensor.sort(descending=True).values[want - 1])
        above, level = int((tensor > threshold).sum()), int((tensor == threshold).sum())
        assert above + share * level == pytest.approx(want)


def test_a_sample_estimates_the_threshold():
    scores = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    exact, _ = largest(lambda: iter([(0, scores)]), [20_000])
    (near,) = sampled(lambda: iter([(0, scores)]), [20_000], [200_000], 5_000)
    assert exact[0] == pytest.approx(0.9, abs=0.005)
    assert near == pytest.approx(0.9, abs=0.02)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 50)), min_size=1, max_size=40), st.floats(0, 1))
def test_units_fill_the_share_from_the_best_down(units, share):
    scores, sizes = torch.tensor([s for s, _ in units]), torch.tensor([n for _, n in units])
    mask = best_units(scores, sizes, share)
    assert int(sizes[mask].sum()) <= share * int(sizes.sum()) + 1e-3
    if mask.any() and not mask.all():
        assert scores[mask].min() >= scores[~mask].max()
    if share == 1:
        assert mask.all()
