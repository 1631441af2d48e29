"""Training a classifier in one process: resumable to the bit, the same batches on any number of ranks."""

import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from raylm.classify.config import ClassifierConfig
from raylm.classify.model import Tokens, encode, load
from raylm.classify.run import Run
from raylm.config import build
from raylm.errors import UserError
from raylm.train import checkpoint

WORDS = ["red", "green", "blue", "one", "two", "three", "a", "the"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=13, max_position_embeddings=32, **sizes)).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def texts(tmp_path):
    rows = [
        {"text": f"{article} {word} {other}", "label": "colour" if word in WORDS[:3] else "number"}
        for word in WORDS[:6]
        for article in ("a", "the")
        for other in ("a", "the", "the a", "a the")
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "texts.jsonl")


def config(texts, **changes):
    return build(
        ClassifierConfig, {"train": texts, "epochs": 3, "batch_size": 8, "lr": 1e-3, "head_lr": 1e-2, **changes}
    )


def nothing(*_):
    pass


@pytest.mark.parametrize(
    "soft", [{}, {"kind": "keyword"}, {"kind": "keyword", "mode": "two_head"}, {"kind": "propagation"}]
)
def test_it_learns_and_is_saved_whole(encoder, texts, tmp_path, soft):
    run = Run(config(texts, soft=soft), encoder)
    run.train(nothing, nothing)
    log = run.finish(tmp_path / "model")
    assert log["figures"]["accuracy"] == 1.0
    model, tokenizer = load(tmp_path / "model")
    np.testing.assert_allclose(
        encode(model, Tokens(["a red the"], tokenizer, 128)), encode(run.model, Tokens(["a red the"], tokenizer, 128))
    )
    assert model.labels == ("colour", "number")


def test_a_resumed_run_is_the_run(encoder, texts, tmp_path):
    whole = Run(config(texts, checkpoint_every=4), encoder)
    whole.train(nothing, lambda step, state: save(tmp_path / f"step-{step}", state))
    resumed = Run(config(texts, checkpoint_every=4), encoder, saved=tmp_path / "step-8")
    assert resumed.first == 8
    resumed.train(nothing, nothing)
    assert resumed.rows == whole.rows
    assert resumed.looks == whole.looks
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def save(folder, state):
    folder.mkdir()
    checkpoint.save(folder, 0, 1, state)


def test_ranks_share_out_the_same_batches(encoder, texts):
    one = Run(config(texts), encoder)
    for step in range(one.steps):
        places = one._batch(step)
        assert sorted(places[0::2] + places[1::2]) == sorted(places)
        assert len(places) >= 4
    seen = sorted(place for step in range(one.pieces) for place in one._batch(step))
    assert seen == list(range(len(one.gold)))


def test_a_frozen_encoder_stays_and_its_vectors_may_be_given(encoder, texts):
    frozen = Run(config(texts, freeze=True, epochs=20, head_lr=0.05), encoder)
    before = {name: value.clone() for name, value in frozen.model.encoder.state_dict().items()}
    frozen.train(nothing, nothing)
    assert all(torch.equal(value, before[name]) for name, value in frozen.model.encoder.state_dict().items())
    known = {}
    for part in (frozen.data.train, frozen.data.dev):
        known |= dict(zip(part.texts, frozen.vectors(part), strict=True))
    given = Run(config(texts, freeze=True, epochs=20, head_lr=0.05), encoder, known=known)
    given.train(nothing, nothing)
    assert [row["loss"] for row in given.rows] == pytest.approx([row["loss"] for row in frozen.rows], abs=1e-6)


def test_too_many_long_texts_are_refused_and_few_are_counted(encoder, texts):
    with pytest.raises(UserError, match=r"have more tokens than max_length=4"):
        Run(config(texts, max_length=4), encoder)
    run = Run(config(texts, max_length=4, max_overlong_share=1.0), encoder)
    assert run.overlong["train"] == len(run.gold)
    assert all(len(ids) == 4 and ids[-1] == 3 for ids in run.train_tokens.ids)  # [SEP] still ends them


def test_a_loss_that_is_not_finite_names_its_texts(encoder, texts):
    run = Run(config(texts), encoder)
    run.model.heads[0].weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 1: loss is nan; the batch holds texts"):
        run.train(nothing, nothing)
