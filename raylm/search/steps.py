"""Cutting a completion into steps without touching its tokens.

A step is a run of whole tokens. The steps' token ids concatenate to the completion's, so the prompt of a tree node is
the question's tokens followed by those of its path, exactly as the engine sampled them, and its prefix cache hits.
The texts concatenate to what decoding the response as a whole gives; decoding pieces alone loses spaces and splits
characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raylm.search.config import StepMode
from raylm.search.tree import Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT = 8
"""Tokens before a piece that are decoded with it, so that its first token is decoded as inside a text."""
_CLOSERS = r"""["'”’)\]*]"""
_SENTENCE_END = re.compile(rf"[.!?。！？]{_CLOSERS}*$")
_MAY_END_SENTENCE = re.compile(rf"([.!?。！？]|{_CLOSERS})$")
_NO_SPACE_NEEDED = re.compile(rf"[。！？]{_CLOSERS}*$")
_LIST_MARK = re.compile(r"^\s*\(?(\d+|[A-Za-z])[.)]$")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Segmenter:
    """Cuts completions of one tokenizer into steps."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, mode: StepMode = "line", tokens: int = 1, pattern: str = ""
    ) -> None:
        """Cut at the ends of lines, at those of sentences and lines, after every `tokens` tokens, or behind every match
        of `pattern`."""
        self.tokenizer, self.mode, self.tokens = tokenizer, mode, tokens
        self.pattern = re.compile(pattern)
        self._pieces: dict[int, str] = {}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids without special tokens, white space as it is."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def split(
        self, prefix: Sequence[int], token_ids: Sequence[int], logprobs: Sequence[float] | None = None
    ) -> list[Step]:
        """The steps of a completion.

        Args:
            prefix: token ids of the response before it; empty at the question.
            token_ids: the completion's; no steps when there are none.
            logprobs: one of each token, in nats; None leaves the steps' at 0.

        Returns:
            steps whose token ids concatenate to `token_ids` and whose texts concatenate to the text added to `prefix`.
        """
        if not token_ids:
            return []
        text = self._added(prefix, token_ids)
        ends = [match.end() for match in self.pattern.finditer(text)] if self.mode == "pattern" else []
        steps: list[Step] = []
        start = position = 0

        def close(stop: int, piece: str) -> None:
            nonlocal start, position
            logprob = float(sum(logprobs[start:stop])) if logprobs is not None else 0.0
            steps.append(Step(tuple(token_ids[start:stop]), piece, logprob))
            start, position = stop, position + len(piece)

        for stop, forced in self._candidates(token_ids):
            if self.mode == "tokens" and stop - start < self.tokens:
                continue
            before = [*prefix[-_CONTEXT:], *token_ids[max(0, start - _CONTEXT) : start]]
            piece = self._added(before, token_ids[start:stop])
            # A cut through a character shows as a replacement mark, or as text that is not part of the whole.
            if piece.endswith(_REPLACEMENT) or not text.startswith(piece, position):
                continue
            reached = position + len(piece)
            if self.mode == "pattern" and not any(position < end <= reached for end in ends):
                continue
            if self._ends(piece, text[reached:], forced):
                close(stop, piece)
        close(len(token_ids), text[position:])
        return steps

    def _added(self, before: Sequence[int], token_ids: Sequence[int]) -> str:
        """Text that tokens add after others."""
        context = list(before[-_CONTEXT:])
        return self.decode([*context, *token_ids])[len(self.decode(context)) :]

    def _candidates(self, token_ids: Sequence[int]) -> list[tuple[int, bool]]:
        """Where a step may end by its tokens: (tokens before the cut, whether a line ends inside the next token)."""
        if self.mode in ("tokens", "pattern"):
            return [(stop, False) for stop in range(1, len(token_ids))]
        found: dict[int, bool] = {}
        for index, token in enumerate(token_ids):
            piece = self._piece(token)
            if "\n" in piece:
                found[index + 1] = False
                if piece.startswith("\n") and piece.strip():
                    found[index] = True
            elif self.mode == "sentence" and _MAY_END_SENTENCE.search(piece):
                found[index + 1] = False
        return [(stop, found[stop]) for stop in sorted(found) if 0 < stop < len(token_ids)]

    def _ends(self, piece: str, rest: str, forced: bool) -> bool:
        """Whether a step ends between `piece` and `rest`; blank lines belong to the step before them."""
        if not piece.strip() or not rest.strip():
            return False
        if forced or self.mode in ("tokens", "pattern"):
            return True
        if piece.rstrip(" \t").endswith("\n"):
            return not re.match(r"[ \t]*\n", rest)
        if self.mode == "line" or rest[0] == "\n":
            return False
        if not rest[0].isspace():
            return bool(_NO_SPACE_NEEDED.search(piece))
        return bool(_SENTENCE_END.search(piece)) and not _LIST_MARK.match(piece)

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self.decode([token])
        return self._pieces[token]
