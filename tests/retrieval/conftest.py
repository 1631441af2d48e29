"""A tiny random encoder and a small collection in the BEIR layout."""

import json

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


COLOURS, NUMBERS = ("red", "green", "blue"), ("one", "two", "three")


@pytest.fixture(scope="session")
def collection(tmp_path_factory):
    """Nine documents, one for each colour and number; a query asks for one of them."""
    folder = tmp_path_factory.mktemp("collection")
    both = [(colour, number) for colour in COLOURS for number in NUMBERS]
    rows = [{"_id": f"{c}-{n}", "title": "", "text": f"the {c} is a {n}"} for c, n in both]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"_id": f"q-{c}-{n}-{w}", "text": f"{w} {c} {n}"} for c, n in both for w in ("what", "which")]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (folder / "qrels").mkdir()
    for split, word in (("train", "what"), ("dev", "which")):
        lines = []
        for c, n in both:
            lines.append(f"q-{c}-{n}-{word}\t{c}-{n}\t2")
            lines += [f"q-{c}-{n}-{word}\t{c}-{other}\t1" for other in NUMBERS if other != n]
        (folder / f"qrels/{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n")
    return str(folder)
