"""Samples, the order of a run, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.errors import UserError
from raylm.llm import models
from raylm.llm.chat import IGNORE
from raylm.train.config import FinetuneConfig
from raylm.train.data import Sample, collate, deal, encode, read_chains


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer(models.resolve("micro").path)


def _row(number, answer="4"):
    return {
        "id": f"c{number}",
        "messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": answer}],
    }


def _write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_labels_cover_the_response_and_its_stop_token(tokenizer):
    sample = encode([_row(0, "It is 4")], tokenizer, FinetuneConfig())[0]
    trained = [token for token, label in zip(sample.ids, sample.labels, strict=True) if label != IGNORE]
    assert tokenizer.decode(trained) == "It is 4<|im_end|>"
    assert trained[-1] == tokenizer.eos_token_id


def test_overlong_chains_are_refused_above_their_share(tokenizer):
    rows = [_row(number) for number in range(9)] + [_row(9, "4" * 200)]
    assert len(encode(rows, tokenizer, FinetuneConfig(max_length=100, max_overlong_share=0.1))) == 9
    with pytest.raises(UserError, match=r"1 of 10 chains.*max_length=100.*c9"):
        encode(rows, tokenizer, FinetuneConfig(max_length=100, max_overlong_share=0.05))
    with pytest.raises(UserError, match="1 of 1 chains are longer"):
        encode(rows[-1:], tokenizer, FinetuneConfig(max_length=100, max_overlong_share=1.0))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([_row(0), '{"messages": ['], ["chains.jsonl:2", "not valid JSON"]),
        ([{"text": "x"}], ["chains.jsonl:1", "messages"]),
        ([{"messages": [{"role": "user", "content": "x"}]}], ["chains.jsonl:1", "assistant"]),
        ([{"messages": [{"role": "assistant", "content": " "}]}], ["chains.jsonl:1", "not empty"]),
        ([{"messages": [{"role": "assistant"}]}], ["chains.jsonl:1", "content"]),
        ([], ["holds no chats"]),
    ],
)
def test_malformed_chains_name_file_and_line(tmp_path, rows, words):
    with pytest.raises(UserError) as error:
        read_chains(_write(tmp_path / "chains.jsonl", rows))
    for word in words:
        assert word in str(error.value)


def test_a_missing_file_says_what_is_expected(tmp_path):
    with pytest.raises(UserError, match="JSONL or Parquet"):
        read_chains(str(tmp_path / "nothing.jsonl"))


@given(st.lists(st.integers(2, 30), min_size=4, max_size=16), st.sampled_from([1, 2, 4]), st.integers(1, 5))
def test_dealing_gives_every_sample_to_one_rank(lengths, world, micro):
    samples = [Sample(str(i), [1] * length, [1] * length) for i, length in enumerate(lengths)]
    batch = list(range(len(samples)))
    dealt = [deal(batch, samples, rank, world, micro) for rank in range(world)]
    assert sorted(index for rank in dealt for group in rank for index in group) == batch
    assert all(len(group) <= micro for rank in dealt for group in rank)


def test_padding_is_masked_and_unlabelled():
    batch = collate([Sample("a", [5, 6, 7], [IGNORE, 6, 7]), Sample("b", [8], [8])], padding=0)
    assert batch["ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE, 6, 7], [8, IGNORE, IGNORE]]
