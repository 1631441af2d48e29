"""Losses with soft targets agree with torch's own where those exist."""

import pytest
import torch
from torch.nn import functional as F

from raylm.softlabels.losses import combined, divergence, soft_cross_entropy

torch.manual_seed(0)
LOGITS, SOFT = torch.randn(4, 5), torch.softmax(torch.randn(4, 5), -1)
GOLD = torch.tensor([0, 1, 2, 4])


def test_they_are_torchs():
    torch.testing.assert_close(soft_cross_entropy(LOGITS, SOFT), F.cross_entropy(LOGITS, SOFT))
    expected = F.kl_div(F.log_softmax(LOGITS, -1), SOFT, reduction="batchmean")
    torch.testing.assert_close(divergence(LOGITS, SOFT), expected)
    assert float(divergence(SOFT.log(), SOFT)) == pytest.approx(0, abs=1e-6)


def test_candidates_that_are_masked_give_finite_values_and_gradients():
    logits = LOGITS.clone().requires_grad_()
    masked = logits.masked_fill(torch.tensor([False, False, False, True, False]), float("-inf"))
    soft = F.one_hot(torch.tensor([0, 1, 2, 4]), 5).float()
    loss = soft_cross_entropy(masked, soft)
    loss.backward()
    torch.testing.assert_close(loss, F.cross_entropy(masked, GOLD))
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("mode", ["single_head", "kl", "two_head"])
def test_without_weight_only_the_hard_label_counts(mode):
    loss = combined(LOGITS, GOLD, SOFT, mode=mode, alpha=0.0, auxiliary=LOGITS)
    torch.testing.assert_close(loss, F.cross_entropy(LOGITS, GOLD))


def test_the_published_form():
    auxiliary = torch.randn(4, 5)
    loss = combined(LOGITS, GOLD, SOFT, mode="two_head", alpha=0.5, auxiliary=auxiliary)
    expected = (F.cross_entropy(LOGITS, GOLD) + 0.5 * F.mse_loss(auxiliary.softmax(-1), SOFT)) / 2.25
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match="auxiliary"):
        combined(LOGITS, GOLD, SOFT, mode="two_head", alpha=0.5)


def test_one_head_with_a_mix_is_cross_entropy_with_mixed_targets():
    mixed = 0.7 * F.one_hot(GOLD, 5) + 0.3 * SOFT
    loss = combined(LOGITS, GOLD, SOFT, mode="single_head", alpha=0.3)
    torch.testing.assert_close(loss, F.cross_entropy(LOGITS, mixed))


def test_no_gradient_reaches_the_targets():
    soft = SOFT.clone().requires_grad_()
    divergence(LOGITS.clone().requires_grad_(), soft).backward()
    assert soft.grad is None
