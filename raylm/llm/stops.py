"""Where a completion ends: cutting sampled tokens at stop strings, the same way for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of sampled tokens, without special tokens and with every space as the model wrote it."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def window(stops: Sequence[str]) -> int:
    """How many of the last tokens can hold a stop string that the newest token completed.

    A token that shows at all decodes to a byte or more; the rest is for tokens that show nothing.
    """
    return 8 + max((len(stop.encode()) for stop in stops), default=0)


def hit(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stops: Sequence[str]) -> bool:
    """Whether the newest of `ids` completed a stop string; looks at the last few tokens only."""
    if not stops:
        return False
    tail = decode(tokenizer, ids[-window(stops) :])
    return any(stop in tail for stop in stops)


def cut(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stops: Sequence[str]
) -> tuple[str, list[int], str | None]:
    """Cut a completion before the stop string that comes first.

    Returns:
        the text; the fewest leading tokens that decode to at least it; the stop string, None when there is none.
    """
    text = decode(tokenizer, ids)
    found = min(((place, stop) for stop in stops if (place := text.find(stop)) >= 0), default=None)
    if found is None:
        return text, list(ids), None
    text = text[: found[0]]
    kept = len(ids)
    while kept and decode(tokenizer, ids[: kept - 1]).startswith(text):
        kept -= 1
    return text, list(ids[:kept]), found[1]
