"""ZeRO on two gloo processes: exact isolation on partitions, the training of plain PyTorch, and other divisions."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from zero import on_two

from raylm.llm import models
from raylm.train import checkpoint
from raylm.train.config import FinetuneConfig
from raylm.train.data import encode
from raylm.train.engines import collect, make_engine, restore
from raylm.train.isolation import bits, save_mask
from raylm.train.isolation.fragments import Fragments
from raylm.train.model import build_model, load_fragments
from raylm.train.plan import Plan
from raylm.train.trainer import Trainer

STEPS = 6
ROWS = [
    {
        "id": str(number),
        "messages": [
            {"role": "user", "content": f"{number} + 1 ="},
            {"role": "assistant", "content": f"{number} + 1 = {number + 1}\nAnswer: {number + 1}"},
        ],
    }
    for number in range(12)
]
ISOLATION = {"protect": 0.2, "warmup": 2, "refresh_every": 2}


def configured(**changes):
    base = {"batch_size": 4, "micro_batch": 1, "lr": 1e-2, "weight_decay": 0.1, "max_steps": STEPS, "epochs": 9}
    isolation = {**ISOLATION, **changes.pop("isolation", {})}
    return FinetuneConfig(**{**base, "isolation": isolation, **changes})


class Run:
    """A run of a few steps that checks after each that what was protected has not moved."""

    def __init__(self, config, rank=0, world=1, saved=None):
        path = models.resolve("micro").path
        tokenizer = models.load_tokenizer(path)
        samples = encode(ROWS, tokenizer, config)
        plan = Plan([sample.task for sample in samples], config)
        model = build_model(str(path), config)
        states = checkpoint.load(saved) if saved else []
        fragments = Fragments(fragment for state in states for fragment in state["fragments"])
        if saved:
            load_fragments(model, fragments, saved)
        self.engine = make_engine(model, config, world, plan.steps)
        self.isolation = self.engine.optimizer.isolation
        self.first = 0
        if saved:
            self.first = states[0]["step"]
            restore(self.engine, fragments, self.first)
            if self.isolation is not None:
                self.isolation.load_state_dict([state["isolation"] for state in states])
        self.trainer = Trainer(config, self.engine, samples, plan, 0, ranks=(rank, world))
        self.rank, self.world = rank, world
        self.norms, self.held = [], 0

    def masks(self):
        if self.isolation is None:
            return []
        return [(part, bits.unpack(part.bits, part.length)) for part in self.isolation.parts if part.bits is not None]

    def train(self, last=STEPS):
        for step in range(self.first, last):
            before = [(part, mask, part.values.clone()) for part, mask in self.masks()]
            self.norms.append(self.trainer.step(step)["grad_norm"])
            for part, mask, old in before:
                self.held += int(mask.sum())
                assert torch.equal(part.values[mask], old[mask])
            if before:
                moved = sum(int((part.values[~mask] != old[~mask]).sum()) for part, mask, old in before)
                assert moved >= 0.9 * sum(int((~mask).sum()) for _, mask, _ in before)
        self.first = last
        return self

    def save(self, folder):
        folder.mkdir(exist_ok=True)
        isolation = self.isolation.state_dict() if self.isolation else None
        state = {"step": self.first, "fragments": collect(self.engine), "isolation": isolation}
        checkpoint.save(folder, self.rank, self.world, state)

    def facts(self):
        """Plain facts, equal on all ranks but for the weights, which rank 0 has."""
        weights = {name: value.float().cpu().clone() for name, value in self.engine.weights().items()}
        rows = self.isolation.log if self.isolation else []
        return {"weights": weights, "rows": rows, "norms": self.norms, "held": self.held}


def train(rank, world, changes, folder=None):
    run = Run(configured(**changes), rank, world).train()
    if folder:
        save_mask(run.isolation, Path(folder) / "mask.safetensors")
    return run.facts()


def break_one(rank, world, changes):
    """What both ranks say of a loss that is not a number on one of them."""
    run = Run(configured(**changes), rank, world)
    whole = run.engine.forward

    def forward(batch):
        loss, each = whole(batch)
        return loss * (float("nan") if rank == 1 else 1.0), each

    run.engine.forward = forward
    try:
        run.trainer.step(0)
    except FloatingPointError as error:
        return str(error)
    return ""


def train_half(rank, world, changes, folder):
    run = Run(configured(**changes), rank, world).train(3)
    run.save(Path(folder))
    return run.train().facts()


def resume(rank, world, changes, folder):
    return Run(configured(**changes), rank, world, Path(folder)).train().facts()


def alike(ours, theirs, tolerance=1e-3):
    """Weights of two runs whose sums round differently; Adam divises such noise by itself where gradients are tiny."""
    assert set(ours["weights"]) == set(theirs["weights"])
    for name, weight in theirs["weights"].items():
        assert (ours["weights"][name] - weight).abs().mean() < tolerance, name
    for mine, other in zip(ours["rows"], theirs["rows"], strict=True):
        assert mine["parameters"] == other["parameters"]
        assert mine["density"] == pytest.approx(other["density"], abs=1e-4)


LORA = {"rank": 4, "alpha": 8}


RUNS = {
    **{f"stage {zero}": {"zero": zero} for zero in (1, 2, 3)},
    **{f"none {zero}": {"zero": zero, "isolation": {"protect": 0.0}} for zero in (1, 2, 3)},
    **{f"off {zero}": {"zero": zero, "isolation": {"enabled": False}} for zero in (1, 2, 3)},
    **{f"full {zero}": {"zero": zero, "isolation": {"protect": 1.0}} for zero in (1, 2, 3)},
    **{f"adapters {zero}": {"zero": zero, "lora": LORA} for zero in (2, 3)},
}
"""Runs that start from the model, by name."""
WHOLE = {
    (zero, precision): {"zero": zero, "precision": precision}
    for zero in (2, 3)
    for precision in ("float32", "bfloat16")
}
"""Runs that save a checkpoint on their way, by stage and precision."""
ON = [*((key, key[0]) for key in WHOLE), ((2, "float32"), 1), ((2, "float32"), 3), ((3, "float32"), 2)]
"""The checkpoints and the stages at which they are gone on from."""
STAGES = (1, 2, 3)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The folder, and both ranks' facts of RUNS, WHOLE, ON and of what breaks, in that order, from two processes."""
    folder = tmp_path_factory.mktemp("zero")
    jobs = [
        (train, changes, str(folder / name) if name.startswith("stage") else None) for name, changes in RUNS.items()
    ]
    jobs += [(train_half, changes, _saved(folder, key)) for key, changes in WHOLE.items()]
    jobs += [(resume, {**WHOLE[key], "zero": zero}, _saved(folder, key)) for key, zero in ON]
    jobs += [(break_one, {"zero": zero}) for zero in STAGES]
    return folder, on_two(folder, *jobs)


def _saved(folder, key):
    return str(folder / f"{key[0]}-{key[1]}")


@pytest.fixture(scope="module")
def trained(everything):
    """Both ranks' facts of every run that starts from the model, by name, and the files of their masks."""
    folder, found = everything
    return dict(zip(RUNS, found, strict=False)), {name: f"{folder / name}/mask.safetensors" for name in RUNS}


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_partitions_train_like_one_process_and_hold_what_is_protected(trained, zero):
    ranks = trained[0][f"stage {zero}"]
    alone = Run(configured(engine="torch", workers=1)).train()
    facts = alone.facts()
    assert all(rank["held"] for rank in ranks)
    assert ranks[0]["norms"] == ranks[1]["norms"]
    assert ranks[0]["norms"][0] == pytest.approx(facts["norms"][0], rel=1e-4)  # before clipping, which is ours to do
    assert ranks[0]["rows"] == ranks[1]["rows"]
    assert [row["density"] for row in ranks[0]["rows"]] == pytest.approx([0.2, 0.2], abs=1e-4)
    alike(ranks[0], facts)
    # The file that both ranks wrote is one mask of the whole model, near that of the run on one process.
    isolation = {"source": "file", "mask_file": trained[1][f"stage {zero}"]}
    run = Run(configured(engine="torch", workers=1, isolation=isolation))
    both = sum(int((a & b).sum()) for (_, a), (_, b) in zip(alone.masks(), run.masks(), strict=True))
    assert both > 0.95 * sum(int(mask.sum()) for _, mask in alone.masks())


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_without_protection_a_run_is_that_of_the_plain_optimizer_bit_for_bit(trained, zero):
    none, off = trained[0][f"none {zero}"][0], trained[0][f"off {zero}"][0]
    assert none["norms"] == off["norms"]
    for name, weight in off["weights"].items():
        assert torch.equal(none["weights"][name], weight)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_full_protection_changes_nothing_after_the_first_mask(trained, zero):
    """Each rank has compared, after every step, all the weights of its partition with those before."""
    ranks = trained[0][f"full {zero}"]
    size = sum(weight.numel() for weight in ranks[0]["weights"].values())
    assert sum(rank["held"] for rank in ranks) == size * (STEPS - ISOLATION["warmup"])
    assert [row["density"] for row in ranks[0]["rows"]] == [1.0, 1.0]


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_loss_that_is_not_finite_on_one_rank_ends_both(everything, zero):
    for said in everything[1][-len(STAGES) :][zero - 1]:
        assert said.startswith("step 1: the gradient is not finite; the batch holds chains ")


@pytest.mark.parametrize("zero", [2, 3])
def test_adapters_train_alone_and_are_isolated(trained, zero):
    ranks = trained[0][f"adapters {zero}"]
    assert ranks[0]["weights"]
    assert all("lora" in name for name in ranks[0]["weights"])
    assert ranks[0]["rows"][0]["parameters"] == sum(weight.numel() for weight in ranks[0]["weights"].values())
    alone = Run(configured(engine="torch", workers=1, lora=LORA))
    start = {name: param.detach().clone() for name, param in alone.engine.model.named_parameters()}
    alone.train()
    for name, param in alone.engine.model.named_parameters():
        assert "lora" in name or torch.equal(param, start[name])


def same(left, right):
    assert left["rows"] == right["rows"]
    for name, weight in right["weights"].items():
        assert torch.equal(left["weights"][name], weight)


@pytest.fixture(scope="module")
def halves(everything):
    """Runs that saved a checkpoint on their way, those that went on from one, and the checkpoints."""
    folder, found = everything
    first = [ranks[0] for ranks in found[len(RUNS) : -len(STAGES)]]
    saved = {key: _saved(folder, key) for key in WHOLE}
    return dict(zip(WHOLE, first, strict=False)), dict(zip(ON, first[len(WHOLE) :], strict=True)), saved


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("zero", [2, 3])
def test_a_checkpoint_goes_on_bit_for_bit(halves, zero, precision):
    """In half precision too, where what is protected is the master copy."""
    whole, resumed, saved = halves
    assert checkpoint.step_of(Path(saved[zero, precision])) == 3
    assert whole[zero, precision]["held"]
    same(resumed[(zero, precision), zero], whole[zero, precision])


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 3), (3, 2)])
def test_a_checkpoint_goes_on_at_another_stage(halves, before, after):
    whole, resumed, _ = halves
    alike(resumed[(before, "float32"), after], whole[before, "float32"])


@pytest.mark.parametrize("zero", [2, 3])
def test_a_checkpoint_of_two_ranks_goes_on_on_one(halves, zero):
    whole, _, saved = halves
    run = Run(configured(engine="torch", workers=1), saved=Path(saved[zero, "float32"]))
    alike(run.train().facts(), whole[zero, "float32"])


def test_micro_batches_do_not_change_the_gradient():
    """The loss is a mean over the global batch's label tokens, however it is cut."""
    found = []
    for micro in (4, 1):
        changes = {"engine": "torch", "workers": 1, "micro_batch": micro, "isolation": {"enabled": False}, "lr": 1e-4}
        found.append(Run(configured(**changes)).train().facts()["weights"])
    for name, weight in found[0].items():
        assert (weight - found[1][name]).abs().max() < 1e-5
