"""A tiny random encoder and a small collection in the BEIR layout."""

import pytest
import torch

WORDS = ["red", "green", "blue", "one", "two", "three", "a", "the", "what", "is", "which", "##s"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Directory of an encoder with 16 dimensions and 14 words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=5 + len(WORDS), max_position_embeddings=32, **sizes)
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)
