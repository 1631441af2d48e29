"""Ids of prompts and responses: the response stays, nothing begins twice, padding does not matter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel

from raylm.errors import UserError
from raylm.llm import models
from raylm.srm import backbone
from raylm.srm.backbone import Backbone


@pytest.fixture(scope="module")
def micro():
    return backbone.load(models.resolve("micro").path, max_length=128)


@pytest.fixture(scope="module")
def small(encoder):
    return backbone.load(encoder, max_length=48)


def response_of(body, pair):
    return body.tokenizer.decode(pair.ids[pair.start : pair.end], skip_special_tokens=True)


@pytest.fixture(scope="module")
def keepers(encoder):
    return {keep: backbone.load(encoder, max_length=48, keep=keep) for keep in ("start", "end", "both")}


@given(keep=st.sampled_from(["start", "end", "both"]), prompt=st.integers(1, 90), response=st.integers(1, 25))
@settings(max_examples=60, deadline=None)
def test_only_the_prompt_is_cut_while_the_response_leaves_it_room(keepers, keep, prompt, response):
    body = keepers[keep]
    pair = body.tokenize(" ".join(["red"] * prompt), " ".join(["blue"] * response))
    assert len(pair.ids) <= 48
    assert response_of(body, pair) == " ".join(["blue"] * response)
    assert pair.cut_prompt == (prompt + response + 3 > 48)
    assert not pair.cut_response
    assert len(pair.context) == prompt + 2


def test_what_is_kept_of_a_long_prompt(encoder):
    words = " ".join(["red"] * 30 + ["green"] * 30)
    kept = {}
    for keep in ("start", "end", "both"):
        body = backbone.load(encoder, max_length=32, keep=keep)
        kept[keep] = body.tokenizer.decode(body.tokenize(words, "blue").ids)
    assert kept["start"].count("red") > 20
    assert kept["end"].count("green") > 20
    assert kept["both"].count("red") == pytest.approx(kept["both"].count("green"), abs=2)


def test_a_response_without_room_is_cut_and_says_so(small):
    pair = small.tokenize("red green", " ".join(["blue"] * 80))
    assert len(pair.ids) == 48
    assert pair.cut_response
    assert small.tokenizer.decode(pair.ids).startswith("[CLS] red green [SEP] blue")
    assert pair.ids[-1] == small.tokenizer.sep_token_id


def test_notes_stay_when_the_prompt_is_cut(small):
    pair = small.tokenize(" ".join(["red"] * 80), "blue", "good one . bad two")
    text = small.tokenizer.decode(pair.ids)
    assert "good one. bad two" in text or "good one . bad two" in text
    assert pair.cut_prompt
    assert response_of(small, pair) == "blue"


@pytest.mark.parametrize("pad_is_end", [False, True])
def test_both_padding_sides_give_the_same_features(pad_is_end):
    path = models.resolve("micro").path
    body = backbone.load(path, max_length=128)
    if pad_is_end:
        body.tokenizer.pad_token = body.tokenizer.eos_token
    pairs = [body.tokenize("What is 2 + 2?", "It is 4." * count) for count in (1, 5, 2)]
    right, left = (body.features(body.batch(pairs, left=side)) for side in (False, True))
    alone = torch.cat([body.features(body.batch([pair])) for pair in pairs])
    torch.testing.assert_close(right, left, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(right, alone, atol=1e-5, rtol=1e-4)


def test_the_last_state_is_the_one_that_ends_the_turn(micro):
    pair = micro.tokenize("Hi", "Yes")
    assert pair.ids[pair.end - 1] == micro.tokenizer.eos_token_id
    with torch.no_grad():
        states = micro.model(input_ids=torch.tensor([pair.ids])).last_hidden_state[0]
        found = micro.features(micro.batch([pair], left=True))[0]
    torch.testing.assert_close(found[: micro.hidden], states[pair.end - 1], atol=1e-5, rtol=1e-4)


def test_a_causal_tokenizer_without_a_template_begins_once():
    path = models.resolve("micro").path
    tokenizer = models.load_tokenizer(path)
    tokenizer.chat_template = None
    begin = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A <|im_start|> $B:1", special_tokens=[("<|im_start|>", begin)]
    )
    body = Backbone(AutoModel.from_pretrained(path), tokenizer, max_length=64)
    pair = body.tokenize("Why?", "Because.")
    assert pair.ids.count(begin) == 1
    assert pair.ids[0] == begin
    assert pair.ids[-1] == tokenizer.eos_token_id
    assert response_of(body, pair) == "Because."


def test_control_tokens_in_texts_are_text(micro, small):
    pair = micro.tokenize("Hi<|im_end|>", "No<|im_end|>")
    assert pair.ids.count(micro.tokenizer.eos_token_id) == 2  # one a turn
    assert small.tokenize("red [SEP]", "blue").ids.count(small.tokenizer.sep_token_id) == 2


def test_chats_and_texts_are_read_alike(micro):
    chat = [{"role": "user", "content": "Hi"}]
    assert micro.tokenize(chat, "Yes") == micro.tokenize("Hi", "Yes")


def test_a_context_beyond_the_positions_is_refused(encoder):
    with pytest.raises(UserError, match="max_length=129 is more than the 128 positions"):
        backbone.load(encoder, max_length=129)
