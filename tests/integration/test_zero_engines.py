"""ZeRO on two gloo processes: exact isolation on partitions, and the same training as plain PyTorch."""

import os
import socket

import pytest
import torch

from raylm.llm import models
from raylm.train.config import FinetuneConfig
from raylm.train.data import Plan, encode
from raylm.train.worker import Trainer, build_model

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


def _config(**changes):
    isolation = {"protect": 0.2, "warmup": 2, "refresh_every": 2}
    return FinetuneConfig(
        **{"batch_size": 4, "micro_batch": 1, "lr": 1e-2, "weight_decay": 0.1, "isolation": isolation, **changes}
    )


def _train(config, rank=0, world=1):
    """Train a few steps; checks after each that what was protected has not moved.

    Returns the weights, the mask rows and the gradient norms.
    """
    from raylm.train.loop import make_engine

    path = models.resolve("micro").path
    tokenizer = models.load_tokenizer(path)
    samples = encode(ROWS, tokenizer, config)
    model = build_model(str(path), config)
    engine = make_engine(model, config, world)
    trainer = Trainer(config, engine, samples, Plan(len(samples), config), 0, ranks=(rank, world))
    isolation, rows, norms, held = engine.optimizer.isolation, [], [], 0
    for step in range(STEPS):
        before = [param.detach().clone().view(-1) for param in engine.flat_parameters()]
        masks = [part.mask for part in isolation._parts] if isolation else []
        norms.append(trainer.step(step)["grad_norm"])
        for old, param, mask in zip(before, engine.flat_parameters(), masks, strict=False):
            if mask is not None:
                held += int(mask.sum())
                assert torch.equal(param.detach().view(-1)[mask], old[mask])
                assert not torch.equal(param.detach().view(-1)[~mask], old[~mask])
        if isolation and isolation.due(step + 1):
            rows.append(isolation.refresh(step + 1))
    assert bool(held) == bool(isolation and config.isolation.protect)
    return {name: param.detach().float().cpu() for name, param in engine.model.named_parameters()}, rows, norms


def _process(rank, port, changes, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    weights, rows, norms = _train(_config(**changes), rank, 2)
    torch.save({"weights": weights, "rows": rows, "norms": norms}, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def _on_two(tmp_path, **changes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, changes, str(tmp_path)), nprocs=2)
    return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("zero", [1, 2])
def test_two_partitions_train_like_one_process_and_hold_what_is_protected(tmp_path, zero):
    ranks = _on_two(tmp_path, zero=zero)
    alone, rows, norms = _train(_config(engine="torch", workers=1))
    assert ranks[0]["norms"] == ranks[1]["norms"]
    assert ranks[0]["norms"][0] == pytest.approx(norms[0], rel=1e-4)  # before clipping, which nobody does for us
    assert [row["entered"] for row in ranks[0]["rows"]] == [row["entered"] for row in ranks[1]["rows"]]
    for name, weight in alone.items():
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name])
        # Sums over ranks round differently; Adam divides such noise by itself where gradients are tiny.
        assert (ranks[0]["weights"][name] - weight).abs().mean() < 1e-3
    for mine, other in zip(ranks[0]["rows"], rows, strict=True):
        assert mine["parameters"] == other["parameters"]
        assert mine["density"] == pytest.approx(0.2, abs=1e-3)
        assert other["density"] == pytest.approx(0.2, abs=1e-3)


def test_adapters_train_alone_and_are_isolated(tmp_path):
    ranks = _on_two(tmp_path, zero=2, lora={"rank": 4, "alpha": 8})
    names = [name for name in ranks[0]["weights"] if "lora" in name]
    start = dict(build_model(str(models.resolve("micro").path), _config()).named_parameters())
    assert names
    for name, weight in ranks[0]["weights"].items():
        base = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if base in start:
            assert torch.equal(weight, start[base])
    assert ranks[0]["rows"][0]["parameters"] == sum(ranks[0]["weights"][name].numel() for name in names)


def test_micro_batches_do_not_change_the_gradient():
    """The loss is a mean over the global batch's label tokens, however it is cut."""
    off = {"enabled": False}
    whole, *_ = _train(_config(engine="torch", workers=1, micro_batch=4, isolation=off, lr=1e-4))
    split, *_ = _train(_config(engine="torch", workers=1, micro_batch=1, isolation=off, lr=1e-4))
    for name, weight in whole.items():
        assert (weight - split[name]).abs().max() < 1e-5
