"""Numbers for Prometheus, through Ray's own metrics endpoint: few names, and no tag that grows with the work.

Outside of a Ray worker all of this does nothing, so pure code may count too. Ray exports a metric as `ray_NAME`, and a
counter as `ray_NAME_total`; cluster/monitoring/grafana.json draws them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One series a process."""

    name: str
    kind: Literal["counter", "gauge"]
    description: str

    @property
    def exported(self) -> str:
        """Its name at the endpoint."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("raylm_nodes", "counter", "Nodes added to search trees; its rate is nodes a second."),
        Metric("raylm_trees", "counter", "Trees that were searched to their end."),
        Metric("raylm_requests_in_flight", "gauge", "Requests that an engine has and has not answered: its queue."),
        Metric("raylm_prompt_tokens", "counter", "Prompt tokens of answered requests."),
        Metric(
            "raylm_cached_tokens", "counter", "Of these, tokens from the prefix cache; the quotient is its hit rate."
        ),
        Metric("raylm_generated_tokens", "counter", "Tokens that engines generated; over verified chains, their cost."),
        Metric("raylm_verified_chains", "counter", "Synthesised chains whose answer the verifier found right."),
        Metric("raylm_train_step", "gauge", "Optimizer step of the run."),
        Metric("raylm_train_loss", "gauge", "Its training loss, nats a label token or text."),
        Metric("raylm_train_tokens_per_second", "gauge", "Training tokens a second over all ranks."),
        Metric("raylm_mask_overlap", "gauge", "Jaccard index of the newest isolation mask with the first one."),
        Metric("raylm_trials_finished", "counter", "Trials of sweeps that ran to their end."),
    )
}
_made: dict[str, Any] = {}


def count(name: str, amount: float = 1.0) -> None:
    """Add to a counter; nothing happens for 0, nor outside of Ray."""
    if amount > 0 and _in_ray():
        _metric(name).inc(amount)


def gauge(name: str, value: float) -> None:
    """Set a gauge; nothing happens outside of Ray."""
    if _in_ray():
        _metric(name).set(value)


def _in_ray() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _metric(name: str) -> Any:
    if name not in _made:
        from ray.util import metrics

        metric = METRICS[name]
        made = metrics.Counter if metric.kind == "counter" else metrics.Gauge
        _made[name] = made(metric.name, description=metric.description)
    return _made[name]
