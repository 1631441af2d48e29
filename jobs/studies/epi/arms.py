"""The arms of the study: settings of one trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OFF = {"isolation": {"enabled": False}}


def isolated(**changes: Any) -> dict[str, Any]:
    """Settings of isolation with a mask made anew every 4% of the steps."""
    return {"isolation": {"refresh_every": 0.04, "warmup": 0.05, **changes}}


SHARES = (0.05, 0.2, 0.5)
FAMILIES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "tuned_lr": {"full": OFF} | {f"lr_{f}": {**OFF, "lr_factor": f} for f in (0.5, 0.25, 0.1)},
    "epi": {f"epi_{p}": isolated(protect=p, measure_noise=True) for p in SHARES},
    "epi_tasks": {f"epi_tasks_{p}": isolated(protect=p, scope="per_task") for p in SHARES},
    "static": {f"static_{p}": isolated(protect=p, source="static") for p in SHARES},
    "probe": {f"probe_{p}": isolated(protect=p, source="file") for p in SHARES},
    "random": {f"random_{p}": isolated(protect=p, choose="random") for p in SHARES},
    "random_static": {
        f"random_static_{p}": isolated(protect=p, choose="random", source="static") for p in SHARES
    },
    "inverse": {f"inverse_{p}": isolated(protect=p, choose="bottom") for p in SHARES},
    "half": {"half": isolated(protect=0.5, choose="random", source="static", granularity="tensor")},
    "ewc": {f"ewc_{w}": {**OFF, "penalty": {"kind": "ewc", "weight": w}} for w in (0.01, 0.1, 1.0)},
    "l2": {f"l2_{w}": {**OFF, "penalty": {"kind": "l2_init", "weight": w}} for w in (0.001, 0.01, 0.1)},
    "lora": {f"lora_{f}": {**OFF, "lora": {"rank": 8, "alpha": 16}, "lr_factor": f} for f in (4.0, 10.0)},
    "variant": {
        "epi_theta_g": isolated(protect=0.5, score="theta_g"),
        "epi_adam": isolated(protect=0.5, score="adam"),
        "epi_max": isolated(protect=0.5, normalise="max"),
        "epi_rank": isolated(protect=0.5, normalise="rank"),
        "epi_none": isolated(protect=0.5, normalise="none"),
        "epi_row": isolated(protect=0.5, granularity="row"),
        "epi_reset": isolated(protect=0.5, on_release="reset"),
        "epi_soft": isolated(protect=0.5, mask="soft"),
        "epi_slow": isolated(protect=0.5, beta=0.999),
        "epi_fast": isolated(protect=0.5, beta=0.9),
        "epi_often": isolated(protect=0.5, refresh_every=0.01),
        "epi_hysteresis": isolated(protect=0.5, hysteresis=5),
        "epi_0.8": isolated(protect=0.8),
        "epi_tasks_0.8": isolated(protect=0.8, scope="per_task"),
    },
}  # fmt: skip
"""Family to its arms; an arm is what differs from the study's settings. `probe` takes the mask of what moved most in a
run on all tasks; `lr_factor` multiplies the learning rate."""
