"""Cutting completions into steps: token-exact and text-exact on byte-level and on word-piece tokenizers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from raylm.search.steps import Segmenter

CORPUS = [
    "First add 3 + 4 = 7.\nThen 7 - 2 = 5. So it is done!\n\nAnswer: 5",
    "Is it 3.5? Yes. 1. Start here\nétape → 数学。好的\n\tindented",
] * 20


def _byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _meta_space():
    """Like Llama 2 and Mistral: decoding a piece of a text by itself loses its leading space."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<0x00>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=["▁"]))
    vocab = {piece: index for index, piece in enumerate([*special, *tokenizer.get_vocab()])}
    tokenizer.model = models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<0x00>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {"byte_level": _byte_level(), "meta_space": _meta_space()}


def encode(name, text):
    return TOKENIZERS[name].encode(text, add_special_tokens=False)


def cut(name, mode, text):
    return [step.text for step in Segmenter(TOKENIZERS[name], mode).split([], encode(name, text))]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_lines_are_steps_and_blank_lines_belong_to_the_one_before(name):
    assert cut(name, "line", "a = 1\nb = 2\n\n\nAnswer: 3") == ["a = 1\n", "b = 2\n\n\n", "Answer: 3"]
    assert cut(name, "line", "one line. two sentences.") == ["one line. two sentences."]
    assert cut(name, "line", "a\nb\n") == ["a\n", "b\n"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_sentences_are_steps_but_not_decimals_or_list_marks(name):
    text = "It is 3.5. Is it? (Yes!) So.\nDone"
    assert cut(name, "sentence", text) == ["It is 3.5.", " Is it?", " (Yes!)", " So.\n", "Done"]
    assert cut(name, "sentence", "数学。好的") == ["数学。", "好的"]
    assert cut(name, "sentence", "1. First do this. 2. Then that.") == ["1. First do this.", " 2. Then that."]


def test_leading_blank_lines_belong_to_the_first_step():
    assert cut("byte_level", "line", "\n\na\nb") == ["\n\na\n", "b"]


def test_a_line_end_inside_a_token_is_cut_before_the_token():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "\nb": 1, "c": 2}, unk_token="c"))
    tokenizer.decoder = decoders.Fuse()
    steps = Segmenter(PreTrainedTokenizerFast(tokenizer_object=tokenizer), "line").split([], [0, 1, 2, 1])
    assert [(step.token_ids, step.text) for step in steps] == [((0,), "a"), ((1, 2), "\nbc"), ((1,), "\nb")]


def test_no_tokens_are_no_steps():
    assert Segmenter(TOKENIZERS["byte_level"], "line").split([1, 2], []) == []


def test_log_probabilities_are_summed_by_step():
    ids = encode("byte_level", "a\nb")
    steps = Segmenter(TOKENIZERS["byte_level"], "line").split([], ids, [-1.0, -2.0, -4.0])
    assert [step.logprob for step in steps] == [-3.0, -4.0]


TEXT = st.text(st.sampled_from(list("ab3.!?\n \t→数é😀)(")), max_size=60)


@given(st.sampled_from(sorted(TOKENIZERS)), st.sampled_from(["line", "sentence"]), TEXT, st.integers(0, 60))
@settings(deadline=None, max_examples=300)
def test_steps_concatenate_to_tokens_and_text_also_from_any_node_on(name, mode, text, at):
    segmenter = Segmenter(TOKENIZERS[name], mode)
    ids = encode(name, text)
    steps = segmenter.split([], ids)
    assert [token for step in steps for token in step.token_ids] == ids
    assert "".join(step.text for step in steps) == segmenter.decode(ids)
    assert all(step.token_ids for step in steps)
    # Sampling on from a node must give the text that the whole response has.
    kept = steps[: at % (len(steps) + 1)]
    prefix = [token for step in kept for token in step.token_ids]
    rest = segmenter.split(prefix, ids[len(prefix) :])
    assert "".join(step.text for step in [*kept, *rest]) == segmenter.decode(ids)
    assert [token for step in rest for token in step.token_ids] == ids[len(prefix) :]


@given(st.sampled_from(["line", "sentence"]), st.lists(st.integers(0, 329), max_size=40))
@settings(deadline=None, max_examples=300)
def test_any_tokens_a_model_may_sample_are_kept_exactly(mode, ids):
    segmenter = Segmenter(TOKENIZERS["byte_level"], mode)
    steps = segmenter.split([], ids)
    assert [token for step in steps for token in step.token_ids] == ids
    assert "".join(step.text for step in steps) == segmenter.decode(ids)
