"""From chats to token ids: the one chat template that search, training, evaluation and serving share."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from raylm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
"""Label of a position that is not trained on."""


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a chat up to where the assistant's next turn begins.

    Text of the messages is data: a special token spelled out in it is encoded as plain text, so a question cannot
    end its own turn.
    """
    return _render(tokenizer, messages, open_turn=True)


def training_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a chat that ends with the assistant's turn.

    Labels are the ids themselves on the last assistant turn and on the token that ends it, and IGNORE elsewhere; what
    the template puts after that token is dropped.

    Raises:
        UserError: the chat does not end with the assistant, or the template does not continue its own prompt.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise UserError("messages must end with the assistant's turn")
    prompt = prompt_ids(tokenizer, messages[:-1])
    whole = _render(tokenizer, messages, open_turn=False)
    if whole[: len(prompt)] != prompt:
        raise UserError("the chat template renders a prompt differently once it is answered; it cannot be trained on")
    stop = tokenizer.eos_token_id
    ends = [index for index in range(len(prompt), len(whole)) if whole[index] == stop]
    if not ends:
        raise UserError(
            f"the chat template never ends the assistant's turn with {tokenizer.eos_token!r}; fix the template"
        )
    ids = whole[: ends[-1] + 1]
    return ids, [IGNORE] * len(prompt) + ids[len(prompt) :]


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], open_turn: bool) -> list[int]:
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    if not any(token in message["content"] for message in messages for token in special):
        text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=open_turn, tokenize=False)
        return tokenizer.encode(text, add_special_tokens=False)
    # Render with stand-ins, so that the template's own text and the messages' text can be encoded by different rules.
    marks = [f"MARK{uuid.uuid5(uuid.NAMESPACE_OID, str(index)).hex}END" for index in range(len(messages))]
    masked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    rest = tokenizer.apply_chat_template(masked, add_generation_prompt=open_turn, tokenize=False)
    ids: list[int] = []
    for mark, message in zip(marks, messages, strict=True):
        before, found, rest = rest.partition(mark)
        ids += tokenizer.encode(before, add_special_tokens=False)
        if found:
            ids += tokenizer.encode(message["content"], add_special_tokens=False, split_special_tokens=True)
    return ids + tokenizer.encode(rest, add_special_tokens=False)
