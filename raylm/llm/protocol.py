"""What every generation engine offers: an async `generate`, the same for vLLM, transformers and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to continue a prompt."""

    n: int = 1
    """Independent samples of the same prompt."""
    temperature: float = 0.7
    """0 is greedy."""
    top_p: float = 1.0
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they are not part of its text."""
    seed: int = 0
    """Sample i of a request is a function of (prompt, seed, i) up to the engine's numerics."""
    logprobs: bool = False
    schema_json: str = ""
    """JSON schema that a completion must follow, where the engine is `guided`; the others let it pass unheeded."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled continuation."""

    text: str
    """Decoded continuation without special tokens, cut before the stop string that ended it."""
    token_ids: list[int]
    """The tokens of `text`, end-of-sequence token excluded. After a stop string the last token may decode to
    a little more than `text` does."""
    finish_reason: Literal["stop", "length"]
    """`stop`: end-of-sequence or a stop string; `length`: max_tokens or the context ran out."""
    logprobs: list[float] | None = None
    """Log-probability in nats of each of `token_ids` under the model at temperature 1, when asked for."""
    stop_string: str | None = None
    """The stop string that ended it, None when it was the end-of-sequence token or the length."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to one request."""

    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values were reused instead of computed."""
    completions: list[Completion]

    @property
    def generated_tokens(self) -> int:
        """Tokens sampled over all completions."""
        return sum(len(completion.token_ids) for completion in self.completions)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which weights answered."""

    name: str
    revision: str
    """Content hash of the model directory, or the hub's commit."""


@dataclass(slots=True)
class EngineStats:
    """Running totals of an engine."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    busy_seconds: float = 0.0
    """Seconds with at least one request in flight."""
    notes: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class Engine(Protocol):
    """A language model that continues prompts; many requests may be in flight at once."""

    name: str
    model: ModelRef
    context_length: int
    tokenizer: PreTrainedTokenizerBase
    guided: bool
    """Whether completions can be constrained to a JSON schema."""

    async def generate(self, prompt: str | Sequence[int], sampling: Sampling) -> Generation:
        """Continue a prompt.

        Args:
            prompt: text, tokenized as it is (no chat template), or token ids.
            sampling: how.

        Cancelling the awaiting task frees the request's place in the engine.

        Raises:
            PromptTooLong: the prompt leaves no room for one token in the context.
            EngineDied: the engine stopped; the message names the cause.
        """
        ...

    def stats(self) -> EngineStats:
        """Totals since the engine started."""
        ...

    async def close(self) -> None:
        """Free the model; later calls of `generate` raise EngineDied."""
        ...
