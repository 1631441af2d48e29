"""A tiny encoder, and pairs and ratings of which one word decides."""

import json
import random

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from raylm.config import build
from raylm.srm.config import RewardConfig

WORDS = ["red", "green", "blue", "one", "two", "three", "a", "the", "good", "bad", "write", "about", ".", ":", "/"]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """Directory of a random BERT of 16 dimensions."""
    folder = tmp_path_factory.mktemp("encoder")
    letters = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"] + list(
        "abcdefghijklmnopqrstuvwxyz0123456789"
    )
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    count = len(dict.fromkeys(vocabulary))
    BertModel(BertConfig(vocab_size=count, max_position_embeddings=128, **sizes)).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def rows(prompts=40, seed=0):
    """Pairs, of which the response with more `good` was chosen, and ratings: the count of it, and a coin."""
    draws = random.Random(seed)
    pairs, ratings = [], []
    for number in range(prompts):
        prompt = f"write about {draws.choice(WORDS[:3])} {number}"
        texts = [" ".join(draws.choices([*WORDS[:8], *["good"] * count], k=6)) for count in (6, 0)]
        texts[0] += " good"
        pairs.append({"prompt": prompt, "chosen": texts[0], "rejected": texts[1]})
        for text in texts:
            scores = {"goodness": text.split().count("good"), "coin": draws.choice([1, 2, 3])}
            ratings.append({"prompt": prompt, "response": text, "scores": scores})
    return pairs, ratings


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Paths of the pairs and the ratings, by config field."""
    pairs, ratings = rows()
    return {"pairs": write(tmp_path / "pairs.jsonl", pairs), "ratings": write(tmp_path / "ratings.jsonl", ratings)}


BRANCHES = [
    {"name": "goodness", "column": "goodness"},
    {"name": "coin", "column": "coin", "kind": "adapter", "rank": 4},
    {"name": "quality"},
    {"name": "length", "kind": "tool"},
]


@pytest.fixture
def configured(files):
    """The maker of configs: configured(epochs=3, ...)."""

    def make(**changes):
        base = {
            **files, "branches": BRANCHES, "folds": 2, "epochs": 3, "fusion_epochs": 3, "batch_size": 16,
            "head_lr": 1e-2, "max_length": 64,
        }  # fmt: skip
        return build(RewardConfig, {**base, **changes})

    return make
