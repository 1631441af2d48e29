"""The gate is there where the prompt decides what counts, and not where prompts are too few to say."""

import random

import pytest
import torch

from raylm.srm.model import RewardModel
from raylm.srm.run import Run

from .conftest import write

SHORT, LONG = {"name": "length", "kind": "tool"}, {"name": "repetition", "kind": "tool"}


def nothing(*_):
    """Heed no step and keep no checkpoint."""


def pairs(prompts, decides):
    """Of two responses the longer one, or the one that repeats more; `decides(color)` says by which of the two."""
    draws = random.Random(0)
    found = []
    for number in range(prompts):
        color = draws.choice(["red", "blue"])
        sides = {"long": "one two three a the good bad write", "again": "one one one one"}
        better = decides(color)
        worse = "again" if better == "long" else "long"
        found.append({"prompt": f"{color} " * 3 + str(number), "chosen": sides[better], "rejected": sides[worse]})
    return found


def made(encoder, configured, path, rows, **fusion):
    config = configured(
        pairs=write(path / "pairs.jsonl", rows), ratings="", branches=[SHORT, LONG], folds=4, fusion_epochs=20,
        fusion_lr=0.05, fusion=fusion,
    )  # fmt: skip
    run = Run(config, encoder)
    run.train(nothing, nothing)
    return run


def test_a_prompt_that_decides_opens_the_gate(encoder, configured, tmp_path):
    rows = pairs(80, lambda color: "long" if color == "red" else "again")
    run = made(encoder, configured, tmp_path, rows)
    assert run.gate["prompt"] < run.gate["constant"] - 0.1
    assert float(run.structure.fusion.gated) == 1.0
    assert run.finish(tmp_path / "model")["figures"]["pair_accuracy"] > 0.9
    assert made(encoder, configured, tmp_path, rows, gate="constant").finish(None)["figures"]["pair_accuracy"] < 0.8


def test_where_prompts_say_nothing_all_are_weighed_alike(encoder, configured, tmp_path):
    """One pair in four is turned at random: a gate learns which prompts, which helps with no other."""
    draws = random.Random(1)
    run = made(encoder, configured, tmp_path, pairs(24, lambda color: draws.choice(["long"] * 3 + ["again"])))
    assert run.gate["constant"] <= run.gate["prompt"]
    fusion = run.structure.fusion
    assert float(fusion.gated) == 0.0
    contexts = torch.randn(5, run.structure.backbone.hidden)
    assert torch.equal(fusion.weights(contexts), fusion.weights(contexts[:1]).expand(5, -1))
    run.finish(tmp_path / "model")
    assert float(RewardModel.load(tmp_path / "model").structure.fusion.gated) == 0.0


@pytest.mark.parametrize("gate", ["prompt", "constant"])
def test_a_gate_that_is_asked_for_is_not_tried(encoder, configured, tmp_path, gate):
    run = made(encoder, configured, tmp_path, pairs(24, lambda color: "long"), gate=gate)
    assert run.gate == {}
    assert run.finish(None)["gate"] == {}
