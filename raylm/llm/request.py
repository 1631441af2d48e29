"""Checks of a request that every engine makes before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raylm.errors import PromptTooLong, UserError
from raylm.llm.protocol import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare(
    prompt: str | Sequence[int], sampling: Sampling, tokenizer: PreTrainedTokenizerBase, vocabulary: int, context: int
) -> tuple[list[int], int]:
    """Token ids of a prompt, and how many tokens may follow it.

    Raises:
        PromptTooLong: no token may follow.
        UserError: the prompt is empty or has ids that the model lacks, or `sampling` makes no sense.
    """
    ids = tokenizer.encode(prompt, add_special_tokens=False) if isinstance(prompt, str) else [int(i) for i in prompt]
    if not ids:
        raise UserError("the prompt is empty; a model needs at least one token to continue")
    if min(ids) < 0 or max(ids) >= vocabulary:
        wrong = next(i for i in ids if not 0 <= i < vocabulary)
        raise UserError(f"token id {wrong} is not in the model's vocabulary of {vocabulary}; use its own tokenizer")
    if sampling.n < 1 or sampling.max_tokens < 1 or sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
        raise UserError(f"{sampling}: n and max_tokens start at 1, temperature at 0, and top_p lies in (0, 1]")
    if "" in sampling.stop:
        raise UserError("an empty stop string would end every completion at once; remove it")
    if len(ids) >= context:
        raise PromptTooLong(
            f"a prompt of {len(ids)} tokens leaves no room in a context of {context}; "
            "shorten it or raise engine.context"
        )
    return ids, min(sampling.max_tokens, context - len(ids))
