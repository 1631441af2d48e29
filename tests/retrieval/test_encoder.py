"""Encoders: vectors that sentence-transformers gives too, whatever is in the batch, and a hash that knows them."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from raylm.errors import UserError
from raylm.retrieval.encoder import Encoder, Settings

TEXTS = ["red one", "the green two is a blue three", "what", "", "a a a a a a a a a a a a a a a a a a a a a"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pooling": "cls", "max_length": 8},
        {"query_prefix": "what is ", "document_prefix": "the "},
        {"dimension": 6},
    ],
)
def test_sentence_transformers_loads_what_is_saved_and_gives_equal_vectors(tiny, tmp_path, changes):
    from sentence_transformers import SentenceTransformer

    encoder = Encoder.load(tiny, **changes)
    encoder.save(tmp_path)
    other, again = SentenceTransformer(str(tmp_path), device="cpu"), Encoder.load(str(tmp_path))
    assert again.settings == encoder.settings
    assert again.hash == encoder.hash
    for kind, theirs in (("query", other.encode_query), ("document", other.encode_document)):
        vectors = encoder.encode(TEXTS, kind)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(TEXTS), encoder.dimension)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(theirs(TEXTS), vectors, atol=1e-6)
        np.testing.assert_array_equal(again.encode(TEXTS, kind), vectors)


def test_what_sentence_transformers_saves_is_loaded(tiny, tmp_path):
    from sentence_transformers import SentenceTransformer

    Encoder.load(tiny, pooling="cls", max_length=7, dimension=5, query_prefix="the ").save(tmp_path / "ours")
    SentenceTransformer(str(tmp_path / "ours"), device="cpu").save(str(tmp_path / "theirs"))
    found = Encoder.load(str(tmp_path / "theirs"))
    assert found.settings == Settings("cls", "the ", "", 7, 5)


def test_vectors_are_those_of_plain_transformers(tiny):
    model, tokenizer = AutoModel.from_pretrained(tiny).eval(), AutoTokenizer.from_pretrained(tiny)
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected.append(torch.nn.functional.normalize(states.mean(0), dim=-1).numpy())
    np.testing.assert_allclose(Encoder.load(tiny).encode(TEXTS), expected, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_a_text_has_its_vector_in_every_batch(tiny, size):
    encoder = Encoder.load(tiny)
    np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=size), encoder.encode(TEXTS), atol=1e-6)
    assert encoder.encode([]).shape == (0, 16)


def test_long_texts_are_cut_as_transformers_cuts_them_and_counted(tiny):
    encoder = Encoder.load(tiny, max_length=6)
    assert encoder.tokens(TEXTS).ids == encoder.tokenizer(TEXTS, truncation=True, max_length=6)["input_ids"]
    assert encoder.truncated(TEXTS) == 2
    assert Encoder.load(tiny, max_length=6, query_prefix="what is a ").truncated(["red one", "red"], "query") == 1


def test_the_hash_knows_weights_and_settings(tiny):
    encoder = Encoder.load(tiny)
    hashes = [encoder.hash, Encoder.load(tiny, max_length=8).hash, Encoder.load(tiny, query_prefix="a ").hash]
    with torch.no_grad():
        next(encoder.model.parameters())[0, 0] += 1e-3
    assert len({*hashes, encoder.hash}) == 4
    assert Encoder.load(tiny).hash == hashes[0]


def test_bad_encoders_are_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="dimension=17: this encoder's vectors have 16"):
        Encoder.load(tiny, dimension=17)
    with pytest.raises(UserError, match="max_length=33: this encoder reads 3 to 32"):
        Encoder.load(tiny, max_length=33)
    encoder = Encoder.load(tiny)
    with torch.no_grad():
        encoder.model.embeddings.word_embeddings.weight[5] = float("nan")
    with pytest.raises(UserError, match="1 of 5 texts a vector that is not finite, first 'red one'"):
        encoder.encode(TEXTS)
    Encoder.load(tiny).save(tmp_path / "odd")
    said = json.loads((tmp_path / "odd/modules.json").read_text())
    said.append({"idx": 3, "name": "3", "path": "3_LSTM", "type": "sentence_transformers.models.LSTM"})
    (tmp_path / "odd/modules.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="module LSTM"):
        Encoder.load(str(tmp_path / "odd"))
    shutil.rmtree(tmp_path / "odd/1_Pooling")
    with pytest.raises(UserError, match="no such directory"):
        Encoder.load(str(tmp_path / "missing"))


def test_training_mode_is_put_back(tiny):
    encoder = Encoder.load(tiny).train()
    encoder.encode(TEXTS[:1])
    assert encoder.training
    assert encoder(*encoder.tokens(TEXTS).batch([0, 1])).requires_grad
