"""The arms of the study: settings of one trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OFF = {"isolation": {"enabled": False}}


def isolated(factor: float = 1.0, **changes: Any) -> dict[str, Any]:
    """Settings of isolation with a mask made anew every 4% of the steps, at a factor of the learning rate."""
    return {"isolation": {"refresh_every": 0.04, "warmup": 0.05, **changes}, "lr_factor": factor}


SHARES = (0.2, 0.5)
FAMILIES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "tuned_lr": {"full": OFF} | {f"lr_{f}": {**OFF, "lr_factor": f} for f in (2.5, 0.5, 0.25, 0.1)},
    "epi": {f"epi_{p}": isolated(protect=p, measure_noise=True) for p in SHARES}
    | {f"epi_{p}_lr_0.25": isolated(0.25, protect=p, measure_noise=True) for p in SHARES},
    "epi_tasks": {f"epi_tasks_{p}_lr_{f}": isolated(f, protect=p, scope="per_task") for p in SHARES for f in (1, 0.25)},
    "static": {f"static_{p}_lr_{f}": isolated(f, protect=p, source="static") for p in SHARES for f in (1, 0.25)},
    "probe": {f"probe_{p}_lr_{f}": isolated(f, protect=p, source="file") for p in SHARES for f in (1, 0.25)},
    "random": {f"random_{p}_lr_{f}": isolated(f, protect=p, choose="random") for p in SHARES for f in (1, 0.25)},
    "random_static": {
        f"random_static_{f}": isolated(f, protect=0.5, choose="random", source="static") for f in (1, 0.25)
    },
    "inverse": {f"inverse_{f}": isolated(f, protect=0.5, choose="bottom") for f in (1, 0.25)},
    "half": {
        f"half_{f}": isolated(f, protect=0.5, choose="random", source="static", granularity="tensor") for f in (1, 0.25)
    },
    "ewc": {f"ewc_{w}": {**OFF, "penalty": {"kind": "ewc", "weight": w}, "lr_factor": 0.25} for w in (0.1, 1.0)},
    "l2": {f"l2_{w}": {**OFF, "penalty": {"kind": "l2_init", "weight": w}, "lr_factor": 0.25} for w in (0.01, 0.1)},
    "lora": {f"lora_{f}": {**OFF, "lora": {"rank": 8, "alpha": 16}, "lr_factor": f} for f in (1.0, 4.0)},
    "variant": {
        "epi_theta_g": isolated(0.25, protect=0.5, score="theta_g"),
        "epi_adam": isolated(0.25, protect=0.5, score="adam"),
        "epi_max": isolated(0.25, protect=0.5, normalise="max"),
        "epi_rank": isolated(0.25, protect=0.5, normalise="rank"),
        "epi_none": isolated(0.25, protect=0.5, normalise="none"),
        "epi_row": isolated(0.25, protect=0.5, granularity="row"),
        "epi_reset": isolated(0.25, protect=0.5, on_release="reset"),
        "epi_slow": isolated(0.25, protect=0.5, beta=0.999),
        "epi_often": isolated(0.25, protect=0.5, refresh_every=0.01),
        "epi_0.8": isolated(0.25, protect=0.8),
        "epi_tasks_0.8": isolated(0.25, protect=0.8, scope="per_task"),
    },
}  # fmt: skip
"""Family to its arms; an arm is what differs from the study's settings. `probe` takes the mask of what moved most in a
run on all tasks; `lr_factor` multiplies the learning rate."""
