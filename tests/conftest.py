"""What all tests share. Those that start nothing come first, so that a plain mistake shows in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("raylm", deadline=None)  # a busy machine is no failure
settings.load_profile("raylm")

INTEGRATION = Path(__file__).parent / "integration"


def pytest_addoption(parser):
    parser.addoption(
        "--share",
        type=Path,
        metavar="FOLDER",
        help="divide the test files between all processes that are given this folder: each takes the next free one",
    )


def pytest_configure(config):
    config.taken = {}
    if config.getoption("--share"):
        config.getoption("--share").mkdir(parents=True, exist_ok=True)


def pytest_collection_modifyitems(items):
    """Long files before short ones among those that start Ray: what begins last should end soon."""
    items.sort(key=lambda item: (item.path.stat().st_size, str(item.path)) if _starts(item) else (), reverse=True)
    items.sort(key=_starts)


def _starts(item):
    return INTEGRATION in item.path.parents


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    """Pass over a test whose file another process has taken; it is reported there."""
    folder, taken = item.config.getoption("--share"), item.config.taken
    if folder and item.path not in taken:
        try:
            (folder / str(item.path).replace("/", "-")).touch(exist_ok=False)
            taken[item.path] = True
        except FileExistsError:
            taken[item.path] = False
    return True if folder and not taken[item.path] else None


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
