"""Stop strings: found as they appear, cut where the first begins, in text and in tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.llm import models, stops

TOKENIZERS = {name: models.load_tokenizer(models.resolve(name).path) for name in ("micro", "smollm2-135m-instruct")}
TEXT = st.text(alphabet="ab \n=é🙂7", min_size=1, max_size=20)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(TOKENIZERS)),
    TEXT,
    st.lists(st.text(alphabet="ab \n=é7", min_size=1, max_size=3), max_size=2),
)
def test_text_is_cut_at_the_first_stop_and_tokens_with_it(name, text, strings):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    cut, kept, stopped = stops.cut(tokenizer, ids, strings)
    places = [text.find(string) for string in strings if string in text]
    assert cut == (text[: min(places)] if places else text)
    assert (stopped is None) == (not places)
    assert ids[: len(kept)] == kept
    assert stops.decode(tokenizer, kept).startswith(cut)
    assert not kept or not places or not stops.decode(tokenizer, kept[:-1]).startswith(cut)


@settings(deadline=None)
@given(st.sampled_from(sorted(TOKENIZERS)), TEXT, st.text(alphabet="ab \n=é7", min_size=1, max_size=4))
def test_a_stop_is_hit_by_the_token_that_completes_it(name, text, string):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("first some words, long enough to fill the window " + text, add_special_tokens=False)
    for end in range(1, len(ids) + 1):
        whole, before = stops.decode(tokenizer, ids[:end]), stops.decode(tokenizer, ids[: end - 1])
        if string in whole and string not in before:
            assert stops.hit(tokenizer, ids[:end], [string])


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_control_tokens_are_no_text(name):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("7<|im_end|>", add_special_tokens=False)
    assert stops.cut(tokenizer, ids, ["<|im_end|>"]) == ("7", ids, None)


def test_nothing_stops_without_stop_strings():
    assert not stops.hit(TOKENIZERS["micro"], [5, 6], [])
