"""What all tests share. Those that start nothing come first, so that a plain mistake shows in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

INTEGRATION = Path(__file__).parent / "integration"


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: INTEGRATION in item.path.parents)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """A tiny random Llama with one output, as a model directory: a reward model."""
    import torch
    from transformers import AutoConfig, LlamaForSequenceClassification

    from raylm.llm import models

    micro = models.resolve("micro").path
    path = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    settings = AutoConfig.from_pretrained(micro)
    settings.num_labels, settings.pad_token_id = 1, 0
    LlamaForSequenceClassification(settings).save_pretrained(path)
    models.load_tokenizer(micro).save_pretrained(path)
    return path
