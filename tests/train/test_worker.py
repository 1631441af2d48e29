"""What a training worker does besides stepping."""

from pathlib import Path

import pytest
import torch

from raylm.config import build
from raylm.errors import UserError
from raylm.llm import models
from raylm.train.config import FinetuneConfig
from raylm.train.worker import _load_weights, build_model


def test_a_checkpoint_of_another_model_is_refused():
    path = str(models.resolve("micro").path)
    whole = build_model(path, FinetuneConfig())
    adapters = build_model(path, build(FinetuneConfig, {"lora": {"rank": 4}}))
    saved = {name: param.detach() for name, param in whole.named_parameters()}
    name = next(iter(saved))
    _load_weights(whole, saved, Path("runs/ft/train/checkpoint_1"))
    for other in ({**saved, name: torch.zeros(3)}, {**saved, "more": torch.zeros(1)}, {name: saved[name]}):
        with pytest.raises(UserError, match=r"checkpoint_1: a checkpoint of another model .*remove runs/ft/train"):
            _load_weights(whole, other, Path("runs/ft/train/checkpoint_1"))
    with pytest.raises(UserError, match="checkpoint of another model"):
        _load_weights(adapters, saved, Path("runs/ft/train/checkpoint_1"))
