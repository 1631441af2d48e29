"""Counters of a replica, for Prometheus: on its own /metrics, and inside Ray through Ray's metrics as well.

Behind a load balancer /metrics is one replica's; Ray's own port has all of them, with the replica as a tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """All that a replica counts."""

    def __init__(self, ray: bool = False) -> None:
        """Make the counters.

        Args:
            ray: also count in Ray's metrics; for replicas.
        """
        from prometheus_client import CollectorRegistry

        self.registry, self._ray = CollectorRegistry(), ray
        self.requests = self._make(
            "Counter", "raylm_serve_requests", "Answers by route and status.", ("route", "status")
        )
        self.seconds = self._make(
            "Histogram", "raylm_serve_request_seconds", "Time to the answer.", ("route",), SECONDS
        )
        self.in_flight = self._make("Gauge", "raylm_serve_in_flight", "Requests being answered.")
        self.batch_texts = self._make("Histogram", "raylm_serve_batch_texts", "Texts of a batch.", ("service",), SIZES)
        self.batch_seconds = self._make(
            "Histogram", "raylm_serve_batch_seconds", "Time of a batch in the model.", ("service",), SECONDS
        )
        self.truncated = self._make(
            "Counter", "raylm_serve_truncated", "Texts longer than the model reads.", ("model",)
        )
        self.loads = self._make("Counter", "raylm_serve_loads", "Loads of a model.", ("model", "outcome"))
        self.documents = self._make("Counter", "raylm_serve_documents", "Documents written.", ("model", "operation"))

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self.requests.inc(route=route, status=str(status))
        self.seconds.observe(seconds, route=route)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)

    def _make(self, kind: str, name: str, help: str, tags: Sequence[str] = (), buckets: Sequence[float] = ()) -> Meter:
        import prometheus_client

        more: dict[str, Any] = {"buckets": buckets} if buckets else {}
        local = getattr(prometheus_client, kind)(name, help, tags, registry=self.registry, **more)
        shared = None
        if self._ray:
            from ray.util import metrics

            bounds: dict[str, Any] = {"boundaries": list(buckets)} if buckets else {}
            shared = getattr(metrics, kind)(name, description=help, tag_keys=tuple(tags), **bounds)
        return Meter(local, shared)


class Meter:
    """One metric in both places."""

    def __init__(self, local: Any, shared: Any) -> None:
        self._local, self._shared = local, shared

    def inc(self, by: float = 1, **tags: str) -> None:
        """Add to a counter."""
        if by > 0:
            self._of(tags).inc(by)
            if self._shared:
                self._shared.inc(by, tags=tags)

    def observe(self, value: float, **tags: str) -> None:
        """Add to a histogram."""
        self._of(tags).observe(value)
        if self._shared and value > 0:
            self._shared.observe(value, tags=tags)

    def set(self, value: float) -> None:
        """Set a gauge."""
        self._local.set(value)
        if self._shared:
            self._shared.set(value)

    def _of(self, tags: dict[str, str]) -> Any:
        return self._local.labels(**tags) if tags else self._local
