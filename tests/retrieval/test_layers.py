"""Frozen lower layers: the same vectors and the same gradients as the whole model's, whatever fits into memory."""

import copy

import pytest
import torch

from raylm.errors import UserError
from raylm.retrieval.encoder import Encoder
from raylm.retrieval.layers import upper

TEXTS = ["red one", "the green two is a blue three", "what", "a a a a a"]


@pytest.mark.parametrize("room", [0.0, 1e-6, 1.0])
def test_upper_layers_give_what_the_model_gives(tiny, room):
    whole = Encoder.load(tiny)
    part = copy.deepcopy(whole)
    full = part.model
    part.model = upper(full, 1, room)
    batch = whole.tokens(TEXTS).batch([3, 0, 1, 2])
    for _ in range(2):
        torch.testing.assert_close(part(*batch), whole(*batch))
    part(*batch).sum().backward()
    whole(*batch).sum().backward()
    trained = {name: value for name, value in full.named_parameters() if value.grad is not None}
    assert trained
    assert all(name.startswith("encoder.layer.1.") for name in trained)
    for name, value in whole.model.named_parameters():
        if name in trained:
            torch.testing.assert_close(trained[name].grad, value.grad)


def test_kept_output_has_no_dropout(tiny):
    encoder = Encoder.load(tiny)
    encoder.model = upper(encoder.model, 2 - 1, 1.0)
    encoder.train()
    ids, _ = encoder.tokens(TEXTS).batch([0, 1])
    torch.testing.assert_close(encoder.model.embeddings(ids), encoder.model.embeddings(ids))


def test_all_layers_cannot_be_frozen(tiny):
    with pytest.raises(UserError, match="freeze_layers=2: this encoder has 2 layers"):
        upper(Encoder.load(tiny).model, 2, 1.0)
