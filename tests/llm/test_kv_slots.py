"""Attention over slots equals plain causal attention, however the tokens were fed."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.llm.kv_slots import KvSlots, Segment, Shape, Step, attend, pack, width

LAYER = SimpleNamespace(layer_idx=0)
SHAPE = Shape(layers=1, heads=2, head_size=16, dtype=torch.float32, device=torch.device("cpu"))


def reference(q, k, v, window=None):
    length = q.shape[1]
    places = torch.arange(length)
    seen = places[None] <= places[:, None]
    if window:
        seen &= places[None] > places[:, None] - window
    group = q.shape[0] // k.shape[0]
    return F.scaled_dot_product_attention(q, k.repeat_interleave(group, 0), v.repeat_interleave(group, 0), seen)


def sequence(length, heads, seed):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(heads, length, 16, generator=generator),
        torch.randn(2, length, 16, generator=generator),
        torch.randn(2, length, 16, generator=generator),
    )


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(2, 140), min_size=1, max_size=4),
    st.sampled_from([2, 6, 10]),
    st.sampled_from([None, 5]),
    st.integers(0, 99),
)
def test_prefill_and_then_decoding_is_causal_attention(lengths, heads, window, seed):
    """Each sequence: some tokens as a segment, more as a second segment, and the last by decoding with the others."""
    kv = KvSlots(SHAPE, 8, 8 * 512)
    assert kv.reserve(141, [])
    data = [sequence(length, heads, seed + index) for index, length in enumerate(lengths)]
    nothing = torch.empty(0, dtype=torch.long)

    def run(parts, step):
        q, k, v = (torch.cat([part[i] for part in parts], 1)[None] for i in range(3))
        return attend(LAYER, q, k, v, None, scaling=16**-0.5, sliding_window=window, raylm_step=step)[0][0]

    def cut(item, start, end):
        return tuple(tensor[:, start:end] for tensor in item)

    outputs = []
    for slot, (item, length) in enumerate(zip(data, lengths, strict=True)):
        middle = (length - 1) // 2
        seen = []
        for start, end in ((0, middle), (middle, length - 1)):
            if start < end:
                step = Step(kv, nothing, 0, [Segment(slot, start, end - start)])
                seen.append(run([cut(item, start, end)], step))
        outputs.append(seen)
    held = torch.tensor([length - 1 for length in lengths])
    last = run(
        [cut(item, length - 1, length) for item, length in zip(data, lengths, strict=True)],
        Step(kv, held, int(held.max()), []),
    )
    for slot, item in enumerate(data):
        whole = torch.cat([*outputs[slot], last[slot : slot + 1]]).transpose(0, 1)
        assert torch.allclose(whole, reference(*item, window), atol=1e-5)


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_widths_cover_grow_and_are_few(one, other):
    assert one <= width(one) <= max(64, 2 * one)
    assert width(one) % 64 == 0
    if one <= other:
        assert width(one) <= width(other)


def test_reserving_more_keeps_what_is_running():
    kv = KvSlots(SHAPE, 8, 2048)
    assert kv.reserve(64, [])
    assert (kv.capacity, kv.rows(kv.capacity)) == (64, 8)
    kv.data[:, :, 0, :, :50] = 7.0
    assert kv.reserve(300, [50])
    assert (kv.capacity, kv.rows(kv.capacity)) == (384, 5)
    assert bool((kv.data[:, :, 0, :, :50] == 7.0).all())
    assert not kv.reserve(1000, [50, 50])  # 2048 tokens are two slots of 1024: no third
    assert kv.reserve(1000, [50])
    assert kv.reserve(10, [])  # idle: small slots again, and many
    assert kv.rows(kv.capacity) == 8


def test_packing_wants_the_last_token_of_everything():
    ids, positions, wanted = pack([(5, 9), (6, 2)], [[1, 2, 3], [4]], [Segment(2, 0, 3), Segment(3, 7, 1)])
    assert ids == [5, 6, 1, 2, 3, 4]
    assert positions == [9, 2, 0, 1, 2, 7]
    assert wanted == [0, 1, 4, 5]


def test_small_steps_are_padded_to_four_rows():
    ids, positions, wanted = pack([(5, 9)], [], [])
    assert (len(ids), len(positions), len(wanted)) == (4, 4, 4)
    assert (ids[0], positions[0], wanted[0]) == (5, 9, 0)


@pytest.mark.parametrize("span", [64, 192, 512])
def test_pieces_are_loaded_end_to_end(span):
    kv = KvSlots(SHAPE, 2, 4096)
    kv.reserve(span, [])
    pieces = [torch.randn(2, 1, 2, count, 16) for count in (10, 20, 5)]
    kv.load(1, pieces, 33)
    assert torch.equal(kv.read(1, 0, 33), torch.cat(pieces, -2)[..., :33, :])
