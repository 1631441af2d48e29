"""From chats to token ids: the one chat template that search, training, evaluation and serving share."""

from __future__ import annotations

import re
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
    text, hidden = _render(tokenizer, messages, open_turn=True)
    return _encode(tokenizer, text, hidden)


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
    before, hidden = _render(tokenizer, messages[:-1], open_turn=True)
    whole, hidden_whole = _render(tokenizer, messages, open_turn=False)
    if not whole.startswith(before):
        raise UserError("the chat template renders a prompt differently once it is answered; it cannot be trained on")
    # Encoded apart, as at generation: no token spans the border of prompt and response.
    prompt = _encode(tokenizer, before, hidden)
    response = _encode(tokenizer, whole[len(before) :], hidden_whole)
    # Some templates end a turn with a control token that is not the end of sequence; the content holds neither.
    control = {tokenizer.eos_token_id} if tokenizer.eos_token_id in response else set(tokenizer.all_special_ids)
    end = next((index for index, token in enumerate(response) if token in control), None)
    if end is None:
        raise UserError(
            f"the chat template never ends the assistant's turn with {tokenizer.eos_token!r}; fix the template"
        )
    response = response[: end + 1]
    return prompt + response, [IGNORE] * len(prompt) + response


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], open_turn: bool
) -> tuple[str, dict[str, str]]:
    """The template's text, with a stand-in for each content that spells a control token; stand-in to content."""
    control = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    # Only what needs it gets a stand-in: elsewhere tokens may span the border of the template and a message.
    hidden = {
        f"MARK{uuid.uuid5(uuid.NAMESPACE_OID, message['content']).hex}END": message["content"]
        for message in messages
        if any(token in message["content"] for token in control)
    }
    marks = {content: mark for mark, content in hidden.items()}
    shown = [{**message, "content": marks.get(message["content"], message["content"])} for message in messages]
    text = tokenizer.apply_chat_template(shown, add_generation_prompt=open_turn, tokenize=False)
    for message in shown:
        if message["content"] in hidden and message["content"] not in text:
            raise UserError(f"the chat template leaves out or rewrites a message of role {message['role']!r}")
    return text, hidden


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, hidden: Mapping[str, str]) -> list[int]:
    """Token ids of a rendered text; what the stand-ins hide is encoded without control tokens."""
    if not hidden:
        return tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = []
    for part in re.split("(" + "|".join(hidden) + ")", text):
        plain = part in hidden
        ids += tokenizer.encode(hidden.get(part, part), add_special_tokens=False, split_special_tokens=plain)
    return ids
