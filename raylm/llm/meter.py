"""Running totals of an engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from raylm import telemetry
from raylm.llm.protocol import EngineStats, Generation


class Meter:
    """Counts requests and the seconds with at least one of them in flight. Used from one event loop."""

    def __init__(self) -> None:
        self._stats = EngineStats()
        self._in_flight = 0
        self._since = 0.0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around one request, from its arrival to its answer or failure."""
        if self._in_flight == 0:
            self._since = time.monotonic()
        self._in_flight += 1
        telemetry.gauge("raylm_requests_in_flight", self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            telemetry.gauge("raylm_requests_in_flight", self._in_flight)
            if self._in_flight == 0:
                self._stats.busy_seconds += time.monotonic() - self._since

    def add(self, generation: Generation) -> None:
        """Count an answered request."""
        self._stats.requests += 1
        self._stats.prompt_tokens += generation.prompt_tokens
        self._stats.cached_tokens += generation.cached_tokens
        self._stats.generated_tokens += generation.generated_tokens
        for name in ("prompt_tokens", "cached_tokens", "generated_tokens"):
            telemetry.count(f"raylm_{name}", getattr(generation, name))

    def note(self, key: str, text: str) -> None:
        """Record a fact about the engine, such as why it was chosen."""
        self._stats.notes[key] = text

    def stats(self) -> EngineStats:
        """A copy of the totals so far."""
        running = time.monotonic() - self._since if self._in_flight else 0.0
        return replace(self._stats, busy_seconds=self._stats.busy_seconds + running, notes=dict(self._stats.notes))
