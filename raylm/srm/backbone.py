"""The shared encoder or causal language model: prompts and responses as ids, and one forward pass as features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from raylm.errors import UserError
from raylm.llm import quick
from raylm.llm.chat import IGNORE, training_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | Sequence[Mapping[str, str]]
"""Text of one user turn, or a chat as {role, content} messages."""

MIN_PROMPT = 16
"""Tokens of a prompt that stay when the response takes all the room."""


def as_text(prompt: Prompt) -> str:
    """A prompt for encoders and tools: text as it is, a chat as lines of `role: content`."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def as_messages(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt for chat templates."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": message["role"], "content": message["content"]} for message in prompt]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and a response as ids."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    """Token types, where the encoder has them."""
    start: int
    """Where the response begins."""
    end: int
    """Where its last token, closing control tokens included for causal models, has ended."""
    context: tuple[int, ...]
    """The prompt's own tokens, uncut: what the fusion's gate reads."""
    cut_prompt: bool
    cut_response: bool


class Backbone(nn.Module):
    """A model without its head; features are pooled over prompt and response in one pass over both."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, max_length: int, keep: str = "both") -> None:
        """Wrap a model.

        Args:
            model: from `AutoModel`.
            tokenizer: its own; one with a chat template is used for causal models.
            max_length: tokens of a prompt and response together.
            keep: what stays of a prompt that is too long: its start, its end, or both.

        Raises:
            UserError: max_length is more than the model's positions.
        """
        super().__init__()
        self.model, self.tokenizer, self.max_length, self.keep = model, tokenizer, max_length, keep
        self.causal = not _is_bidirectional(model)
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions and max_length > positions:
            raise UserError(f"max_length={max_length} is more than the {positions} positions of the backbone; lower it")
        if getattr(model, "pooler", None) is not None:
            model.pooler.requires_grad_(False)  # no loss reaches it
        self.layout = None if self.causal and tokenizer.chat_template else Layout(tokenizer, self.causal)
        self.typed = "token_type_ids" in tokenizer.model_input_names and not self.causal

    @property
    def hidden(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def width(self) -> int:
        """Features of a pair."""
        return 2 * self.hidden if self.causal else 4 * self.hidden

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def tokenize(self, prompt: Prompt, response: str, notes: str = "") -> Pair:
        """Ids of a pair, at most `max_length`; the response is cut only when it leaves a prompt no room at all.

        Args:
            notes: branches' texts, which follow the prompt and are cut after it.
        """
        prompt, least = self._noted(prompt, notes)
        if self.layout is None:
            ids, labels = training_ids(
                self.tokenizer, [*as_messages(prompt), {"role": "assistant", "content": response}]
            )
            border = sum(label == IGNORE for label in labels)
            before, said = ids[:border], ids[border:]
            after: list[int] = []
            front, room = 4, self.max_length
        else:
            before, said, after = self.layout.pieces(as_text(prompt), response)
            front, room = len(self.layout.before), self.max_length - len(after)
        context = before
        kept = min(len(before), max(room - len(said), min(MIN_PROMPT, room // 2)))
        before = _cut(before, kept, front, self.keep, least)
        cut = len(said) > room - len(before)
        said = [*said[: room - len(before) - 1], said[-1]] if cut else said
        middle = len(before)
        types = [0] * middle + [1] * (len(said) + len(after))
        return Pair(
            (*before, *said, *after), tuple(types), middle, middle + len(said), tuple(context),
            cut_prompt=kept < len(context), cut_response=cut,
        )  # fmt: skip

    def _noted(self, prompt: Prompt, notes: str) -> tuple[Prompt, int]:
        """A prompt with notes behind it, and how many tokens at its end they take."""
        if not notes:
            return prompt, 0
        least = len(self.tokenizer.encode(notes, add_special_tokens=False)) + 8
        messages = as_messages(prompt)
        messages[-1]["content"] += "\n\n" + notes
        return (messages[0]["content"] if isinstance(prompt, str) else messages), least

    def batch(self, pairs: Sequence[Pair], left: bool = False) -> dict[str, torch.Tensor]:
        """Padded tensors, [batch, longest] each: ids, mask, response (1 on its tokens), positions and types.

        Args:
            left: pad a causal model's batch on the left (encoders, whose positions are absolute, are padded on the
                right). Which tokens count is said by masks alone, so a pad token that is also the end of sequence does
                no harm, and both sides give the same features.
        """
        left = left and self.causal
        longest = max(len(pair.ids) for pair in pairs)
        padding = self.tokenizer.pad_token_id or 0
        names = ("ids", "mask", "response", "positions", "types")
        rows: dict[str, list[list[int]]] = {name: [] for name in names}
        for pair in pairs:
            length = len(pair.ids)
            response = [int(pair.start <= place < pair.end) for place in range(length)]
            parts = (list(pair.ids), [1] * length, response, list(range(length)), list(pair.types))
            for name, part in zip(names, parts, strict=True):
                empty = [padding if name == "ids" else 0] * (longest - length)
                rows[name].append(empty + part if left else part + empty)
        return {name: torch.tensor(value, device=self.device) for name, value in rows.items()}

    def features(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Features of pairs, [batch, width], float32.

        Encoders: [p, r, p * r, |p - r|] of the means p and r over the prompt's and the response's token states.
        Causal models: the response's last state and the mean of its states.
        """
        arguments: dict[str, Any] = {"input_ids": batch["ids"], "attention_mask": batch["mask"]}
        if self.typed:
            arguments["token_type_ids"] = batch["types"]
        if self.causal:
            arguments |= {"position_ids": batch["positions"], "use_cache": False}
        states = self.model(**arguments).last_hidden_state.float()
        response = _mean(states, batch["response"])
        if self.causal:
            places = torch.arange(states.shape[1], device=states.device)
            last = (places * batch["response"]).argmax(1)
            return torch.cat([states[torch.arange(len(last), device=last.device), last], response], 1)
        prompt = _mean(states, batch["mask"] - batch["response"])
        return torch.cat([prompt, response, prompt * response, (prompt - response).abs()], 1)

    def contexts(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """What the gate knows of prompts, [batch, hidden]: means of input embeddings, without the responses."""
        table = self.model.get_input_embeddings().weight
        found = [table[torch.tensor(pair.context, device=table.device)].float().mean(0) for pair in pairs]
        return torch.stack(found)


class Layout:
    """Control tokens around and between two texts, read off what the tokenizer itself puts there."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, causal: bool) -> None:
        found = tokenizer("a", "b")
        ids, sources = found["input_ids"], found.sequence_ids(0)
        first = [place for place, source in enumerate(sources) if source == 0]
        second = [place for place, source in enumerate(sources) if source == 1]
        between = ids[first[-1] + 1 : second[0]]
        self.tokenizer = tokenizer
        self.before, self.after = ids[: first[0]], ids[second[-1] + 1 :]
        # Causal tokenizers begin the second text with another beginning-of-sequence token.
        self.between = [] if causal else between
        self.close = (
            [tokenizer.eos_token_id] if causal and not self.after and tokenizer.eos_token_id is not None else []
        )
        self.gap = "\n\n" if causal else ""

    def pieces(self, prompt: str, response: str) -> tuple[list[int], list[int], list[int]]:
        """Ids up to the response, of the response, and after it; control tokens spelled out in texts are plain text."""
        first, second = (
            self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            for text in (prompt + self.gap, response)
        )
        return [*self.before, *first, *self.between], [*second, *self.close], self.after


def load(folder: str | Path, *, max_length: int, keep: str = "both", device: str = "cpu") -> Backbone:
    """A backbone from a model directory; safetensors only."""
    quick.without_sklearn()
    from transformers import AutoModel
    from transformers.utils import logging

    from raylm.llm.models import load_tokenizer

    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    return Backbone(model.to(device), load_tokenizer(folder), max_length=max_length, keep=keep)


def _is_bidirectional(model: Any) -> bool:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = model.config.model_type
    decoder = getattr(model.config, "is_decoder", False)
    return (kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decoder) or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _cut(ids: list[int], kept: int, front: int, keep: str, least: int = 0) -> list[int]:
    """So many of a prompt's tokens; the control tokens at its very front stay."""
    if kept >= len(ids):
        return ids
    front = min(front, kept)
    rest = kept - front
    end = {"start": min(rest, 4), "end": rest, "both": rest // 2}[keep]  # the turn's closing tokens are at the end
    end = max(end, min(rest, least))
    start = front + rest - end
    return ids[:start] + ids[len(ids) - end :]


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1.0)
