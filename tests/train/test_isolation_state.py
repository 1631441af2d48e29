"""States and mask files: by tensor and place, so that any division of the parameters goes on from any other."""

import copy
import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from raylm.errors import UserError
from raylm.train.isolation import IsolatedAdamW, Isolation, IsolationConfig, Segment, bits, save_mask, whole
from raylm.train.isolation.fragments import Fragments

SHAPES = {"a": (9, 5), "b": (13,), "c": (4, 11)}
OPTIONS = {"lr": 0.05, "betas": (0.9, 0.95), "weight_decay": 0.1}
STEPS = 30


pytestmark = pytest.mark.usefixtures("one_thread")


def start():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).view(-1) for name, shape in SHAPES.items()}


def gradients(step):
    generator = torch.Generator().manual_seed(1000 + step)
    return {name: torch.randn(shape, generator=generator).view(-1) for name, shape in SHAPES.items()}


class Divided:
    """The tensors end to end, cut into flat parameters of which each is padded, as partitions are."""

    def __init__(self, cuts, padding=0, **changes):
        values, ends, at = start(), sorted({0, *cuts, 102}), {}
        for name in values:
            at[name] = sum(v.numel() for n, v in values.items() if n < name)
        self.held = []
        for low, high in itertools.pairwise(ends):
            flat, segments = torch.zeros(high - low + padding), []
            for name, value in values.items():
                begin, end = max(low, at[name]), min(high, at[name] + value.numel())
                if begin < end:
                    segments.append(Segment(name, begin - low, end - begin, begin - at[name], SHAPES[name]))
                    flat[begin - low : end - low] = value[begin - at[name] : end - at[name]]
            self.held.append((torch.nn.Parameter(flat), segments))
        self.optimizer = IsolatedAdamW([param for param, _ in self.held], **OPTIONS)
        settings_ = IsolationConfig(**{"protect": 0.3, "refresh_every": 3, "warmup": 2, **changes})
        self.isolation = Isolation(settings_, self.held, steps=STEPS)
        self.optimizer.isolate(self.isolation)

    def train(self, first, last):
        for step in range(first, last):
            full = gradients(step)
            for param, segments in self.held:
                param.grad = torch.zeros_like(param)
                for s in segments:
                    param.grad[s.start : s.start + s.length] = full[s.name][s.offset : s.offset + s.length]
            self.optimizer.step()

    def masks(self):
        found = {name: torch.zeros(torch.Size(shape).numel(), dtype=torch.bool) for name, shape in SHAPES.items()}
        for part in self.isolation.parts:
            segment = part.segment
            found[part.name][segment.offset : segment.offset + part.length] = bits.unpack(part.bits, part.length)
        return found


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in SHAPES)


CUTS = st.lists(st.integers(1, 101), max_size=4)
CHANGES = st.sampled_from([
    {}, {"choose": "random"}, {"choose": "bottom"}, {"normalise": "rank"}, {"normalise": "max"}, {"granularity": "row"},
    {"granularity": "tensor", "protect": 0.6}, {"hysteresis": 2}, {"score": "theta_g"}, {"measure_noise": True},
    {"scope": "per_task"}, {"score": "moved"},
])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(CUTS, st.integers(0, 3), CHANGES)
def test_masks_do_not_depend_on_the_division(cuts, padding, changes):
    whole_, cut = Divided([], **changes), Divided(cuts, padding, **changes)
    for divided in (whole_, cut):
        divided.train(0, 9)
    differ = sum(
        int((left != right).sum()) for left, right in zip(whole_.masks().values(), cut.masks().values(), strict=True)
    )
    assert differ <= 2 * (11 if "granularity" in changes else 1)  # means are summed in another order
    assert whole_.isolation.log[-1]["density"] == pytest.approx(cut.isolation.log[-1]["density"], abs=0.12)


@settings(max_examples=60, deadline=None)
@given(CUTS, CUTS, CHANGES, st.integers(3, 8))
def test_a_state_goes_into_any_other_division(before, after, changes, steps):
    one, other = Divided(before, **changes), Divided(after, padding=2, **changes)
    one.train(0, steps)
    other.isolation.load_state_dict(one.isolation.state_dict())
    assert same(one.masks(), other.masks())
    assert other.isolation.log == one.isolation.log
    assert (other.isolation.step, other.isolation.refreshes) == (steps, one.isolation.refreshes)
    left, right = (Fragments(d.isolation.state_dict()["fragments"]) for d in (one, other))
    for name, shape in SHAPES.items():
        segment = Segment(name, 0, torch.Size(shape).numel(), 0, shape)
        mine, theirs = left.assemble(segment, "importance/"), right.assemble(segment, "importance/")
        assert (mine is None and theirs is None) or torch.equal(mine, theirs)


@pytest.mark.parametrize("steps", [1, 5, 6, 7])
@pytest.mark.parametrize(
    "changes",
    [{}, {"hysteresis": 3}, {"release_ramp": 2}, {"mask": "soft"}, {"measure_noise": True}, {"choose": "random"},
     {"scope": "per_task"}, {"score": "moved"}, {"score": "adam"}, {"protect_schedule": "linear"}],
    ids=str,
)  # fmt: skip
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(changes, steps, tmp_path):
    """The state travels in the optimizer's, as any trainer saves it."""
    uninterrupted, first, second = (Divided([40], **changes) for _ in range(3))
    uninterrupted.train(0, 20)
    first.train(0, steps)
    torch.save(first.optimizer.state_dict(), tmp_path / "optimizer.pt")
    for (param, _), (saved, _) in zip(second.held, first.held, strict=True):
        param.data.copy_(saved.data)
    second.optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    second.train(steps, 20)
    assert second.isolation.log == uninterrupted.isolation.log
    for (ours, _), (theirs, _) in zip(second.held, uninterrupted.held, strict=True):
        assert torch.equal(ours, theirs)


def test_a_hooked_optimizer_saves_and_loads_the_state_too():
    params = [torch.nn.Parameter(value.clone()) for value in start().values()]
    optimizer = torch.optim.AdamW(params, **OPTIONS)
    isolation = Isolation(IsolationConfig(warmup=2), whole(zip(SHAPES, params, strict=True)), steps=STEPS)
    isolation.attach(optimizer)
    for step in range(5):
        for param, gradient in zip(params, gradients(step).values(), strict=True):
            param.grad = gradient
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    again = torch.optim.AdamW(params, **OPTIONS)
    other = Isolation(IsolationConfig(warmup=2), whole(zip(SHAPES, params, strict=True)), steps=STEPS)
    other.attach(again)
    again.load_state_dict(saved)
    assert (other.step, other.log) == (5, isolation.log)
    assert all(torch.equal(a.bits, b.bits) for a, b in zip(isolation.parts, other.parts, strict=True))


def test_a_state_goes_on_with_another_decay():
    """The average itself is carried over, and what comes after is weighed anew."""
    before, after = Divided([], beta=0.9), Divided([], beta=0.5)
    before.train(0, 6)
    after.isolation.load_state_dict(before.isolation.state_dict())

    def averages(divided):
        importance = divided.isolation.importance
        return torch.cat([part.importance[""] for part in divided.isolation.parts]) * importance.growth.unit(
            importance.observed[""]
        )

    held = averages(before)
    assert torch.allclose(averages(after), held)
    after.train(6, 7)
    squares = torch.cat([gradient.reshape(-1) for gradient in gradients(6).values()]) ** 2
    assert torch.allclose(averages(after), 0.5 * held + 0.5 * squares)


def test_a_state_that_does_not_fit_is_refused():
    divided = Divided([])
    divided.train(0, 3)
    state = divided.isolation.state_dict()
    with pytest.raises(UserError, match="holds score=g2, not theta_g"):
        Divided([], score="theta_g").isolation.load_state_dict(state)
    part = {**state, "fragments": [fragment for fragment in state["fragments"] if fragment["name"] != "b"]}
    with pytest.raises(UserError, match="another model: it holds nothing of b"):
        Divided([]).isolation.load_state_dict(part)
    cut = copy.deepcopy(state)
    cut["fragments"][0]["importance/"] = cut["fragments"][0]["importance/"][:7]
    with pytest.raises(ValueError, match="a: 38 of 45 elements are not in the state"):
        Divided([]).isolation.load_state_dict(cut)


@settings(max_examples=20, deadline=None)
@given(CUTS, CUTS)
def test_a_mask_file_holds_any_division(tmp_path_factory, before, after):
    path = tmp_path_factory.mktemp("mask") / "deep" / "mask.safetensors"
    probe = Divided(before)
    probe.train(0, 6)
    save_mask(probe.isolation, path)
    run = Divided(after, source="file", mask_file=str(path))
    assert same(probe.masks(), run.masks())
    untouched = [param.detach().clone() for param, _ in run.held]
    run.train(0, 3)
    assert same(probe.masks(), run.masks())
    assert not run.isolation.log
    for (param, segments), old in zip(run.held, untouched, strict=True):
        for segment in segments:
            mask = probe.masks()[segment.name][segment.offset : segment.offset + segment.length]
            window = slice(segment.start, segment.start + segment.length)
            assert torch.equal(param.detach()[window][mask], old[window][mask])
            assert (param.detach()[window][~mask] != old[window][~mask]).all()


def test_a_mask_file_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "mask.safetensors"
    probe = Divided([])
    probe.train(0, 4)
    save_mask(probe.isolation, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    shapes = json.loads(metadata["shapes"])
    save_file(
        load_file(path), tmp_path / "other.safetensors", {**metadata, "shapes": json.dumps({**shapes, "a": [45]})}
    )
    with pytest.raises(UserError, match=r"another model: a \[9, 5\] trains, and the file has it as \[45\]"):
        Divided([], source="file", mask_file=str(tmp_path / "other.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cut.safetensors: not a whole safetensors file"):
        Divided([], source="file", mask_file=str(tmp_path / "cut.safetensors"))
    save_file({"a": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"weights.safetensors: not a mask"):
        Divided([], source="file", mask_file=str(tmp_path / "weights.safetensors"))
