"""An engine that also writes down every request: for cost audits, and to count what a resumed job repeats."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from raylm.llm.protocol import Engine, EngineStats, Generation, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LoggedEngine:
    """Passes every call on to `engine` and appends one JSON line a request to `path`.

    A line is written when the request starts, so that a request whose process was killed is on record too. Lines are
    appended in one write each; several processes may share the file.
    """

    def __init__(self, engine: Engine, path: str) -> None:
        self.engine, self.path = engine, path
        self.name, self.model, self.context_length = engine.name, engine.model, engine.context_length
        self.tokenizer: PreTrainedTokenizerBase = engine.tokenizer
        self.guided = engine.guided
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)

    async def generate(self, prompt: str | Sequence[int], sampling: Sampling) -> Generation:
        """Log and pass on; see `Engine.generate`."""
        text = prompt if isinstance(prompt, str) else self.tokenizer.decode(list(prompt))
        line = {
            "time": time.time(),
            "pid": os.getpid(),
            "request": hashlib.sha256(f"{text}\x1f{sampling}".encode()).hexdigest()[:16],
            "prompt": text,
            "sampling": asdict(sampling),
        }
        with open(self.path, "ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")
        return await self.engine.generate(prompt, sampling)

    def stats(self) -> EngineStats:
        """Totals of the engine."""
        return self.engine.stats()

    async def close(self) -> None:
        """Close the engine."""
        await self.engine.close()
