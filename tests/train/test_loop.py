"""Learning rates."""

import pytest
import torch
from transformers import get_scheduler

from raylm.train.config import FinetuneConfig
from raylm.train.loop import learning_rate


@pytest.mark.parametrize(("schedule", "theirs"), [("cosine", "cosine"), ("linear", "linear"),
                                                  ("constant", "constant_with_warmup")])  # fmt: skip
def test_schedules_after_the_warm_up_are_those_of_transformers(schedule, theirs):
    config, steps, warm = FinetuneConfig(lr=0.5, schedule=schedule, warmup_share=0.2), 50, 10
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warm, num_training_steps=steps)
    expected = []
    for _ in range(steps):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    found = [learning_rate(config, step, steps) for step in range(steps)]
    assert found[warm:] == pytest.approx(expected[warm:])
    # The first step moves too, where theirs has a rate of 0.
    assert found[:warm] == pytest.approx([0.5 * (step + 1) / (warm + 1) for step in range(warm)])
