"""The arms of the study: settings of one trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OFF = {"isolation": {"enabled": False}}


def isolated(factor: float = 1.0, **changes: Any) -> dict[str, Any]:
    """Settings of isolation with a mask made anew every 4% of the steps, at a factor of the learning rate."""
    return {"isolation": {"protect": 0.5, "refresh_every": 0.04, "warmup": 0.05, **changes}, "lr_factor": factor}


def at_rates(name: str, *rates: float, **changes: Any) -> dict[str, dict[str, Any]]:
    """An isolated arm at several factors of the learning rate."""
    return {f"{name}_{rate}": isolated(rate, **changes) for rate in rates}


RATES = (1.0, 0.3, 0.1)
FAMILIES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "tuned_lr": {"full": OFF} | {f"lr_{f}": {**OFF, "lr_factor": f} for f in (0.5, 0.25, 0.1, 0.05)},
    "epi": {
        **at_rates("epi_0.05", 1.0, protect=0.05, measure_noise=True),
        **at_rates("epi_0.5", *RATES, measure_noise=True),
        **at_rates("epi_0.8", *RATES, protect=0.8, measure_noise=True),
    },
    "epi_tasks": at_rates("epi_tasks", *RATES, scope="per_task"),
    "static": at_rates("static", *RATES, source="static"),
    "probe": at_rates("probe", *RATES, source="file"),
    "random": at_rates("random", *RATES, choose="random"),
    "random_static": at_rates("random_static", *RATES, choose="random", source="static"),
    "inverse": at_rates("inverse", *RATES, choose="bottom"),
    "half": at_rates("half", *RATES, choose="random", source="static", granularity="tensor"),
    "ewc": {f"ewc_{w}": {**OFF, "penalty": {"kind": "ewc", "weight": w}, "lr_factor": 0.5} for w in (1.0, 10.0)},
    "l2": {f"l2_{w}": {**OFF, "penalty": {"kind": "l2_init", "weight": w}, "lr_factor": 0.5} for w in (0.01, 0.1)},
    "lora": {f"lora_{f}": {**OFF, "lora": {"rank": 8, "alpha": 16}, "lr_factor": f} for f in (1.0, 4.0)},
    "variant": {
        **at_rates("epi_theta_g", 0.3, score="theta_g"),
        **at_rates("epi_adam", 0.3, score="adam"),
        **at_rates("epi_max", 0.3, normalise="max"),
        **at_rates("epi_rank", 0.3, normalise="rank"),
        **at_rates("epi_none", 0.3, normalise="none"),
        **at_rates("epi_row", 0.3, granularity="row"),
        **at_rates("epi_reset", 0.3, on_release="reset"),
        **at_rates("epi_slow", 0.3, beta=0.999),
        **at_rates("epi_often", 0.3, refresh_every=0.01),
        **at_rates("epi_soft", 0.3, mask="soft"),
        **at_rates("epi_tasks_0.8", 0.3, scope="per_task", protect=0.8),
    },
}
"""Family to its arms; an arm is what differs from the study's settings. `probe` takes the mask of what moved most in a
run on all tasks; `lr_factor` multiplies the learning rate."""
