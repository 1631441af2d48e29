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
def pytest_runtest_protocol(item, nextitem):
    """Pass over a test whose file another process has taken; it is reported there."""
    folder, taken = item.config.getoption("--share"), item.config.taken
    if folder and item.path not in taken:
        try:
            (folder / str(item.path).replace("/", "-")).touch(exist_ok=False)
            taken[item.path] = True
        except FileExistsError:
            taken[item.path] = False
    if not folder or taken[item.path]:
        return None
    # The test before left standing what this one would have needed; it goes with all that the next does not need.
    item.session._setupstate.teardown_exact(nextitem)
    return True


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


@pytest.fixture(scope="session")
def served_models(tmp_path_factory):
    """A folder with a tiny encoder, an index of three documents of it, and two reward models on it."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from raylm.retrieval.encoder import Encoder
    from raylm.retrieval.index import Index, Source
    from raylm.srm.backbone import Backbone
    from raylm.srm.config import BranchConfig, FusionConfig
    from raylm.srm.model import RewardModel
    from raylm.srm.structure import Structure

    folder = tmp_path_factory.mktemp("served")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue", "one", "two", "three", "four"]
    words += ["a", "the", "is", "which"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    settings = BertConfig(vocab_size=len(words), max_position_embeddings=32, initializer_range=0.5, **sizes)
    torch.manual_seed(0)
    BertModel(settings).save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    encoder = Encoder.load(str(folder / "plain"))
    encoder.save(folder / "encoder")
    encoder = Encoder.load(str(folder / "encoder"))
    texts = ["red is one", "green is two", "blue is three"]
    index = Index.build(["red", "green", "blue"], texts, encoder.encode(texts), source=Source("tiny", encoder.hash))
    index.save(str(folder / "index"))
    branches = [BranchConfig(name="quality", kind="head"), BranchConfig(name="length", kind="tool")]
    for name in ("first", "second"):
        body = Backbone(BertModel(settings), tokenizer, max_length=32)
        structure = Structure(body, branches, FusionConfig())
        with torch.no_grad():
            for _, value in structure.named_parameters():
                value.normal_(0, 0.5)
        RewardModel(structure, name, "").save(folder / name)
    return folder
