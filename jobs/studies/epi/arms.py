"""The arms of the study: settings of one trainer."""

from __future__ import annotations

from typing import Any

OFF = {"isolation": {"enabled": False}}


def isolated(**changes: Any) -> dict[str, Any]:
    """Settings of isolation with a mask made anew every 4% of the steps."""
    return {"isolation": {"refresh_every": 0.04, "warmup": 0.05, **changes}}


ARMS: dict[str, dict[str, Any]] = {
    "full": OFF,
    "lr_0.5": {**OFF, "lr_factor": 0.5},
    "lr_0.25": {**OFF, "lr_factor": 0.25},
    "lr_0.1": {**OFF, "lr_factor": 0.1},
    **{f"epi_{p}": isolated(protect=p) for p in (0.05, 0.2, 0.5)},
    **{f"epi_tasks_{p}": isolated(protect=p, scope="per_task") for p in (0.05, 0.2, 0.5)},
    **{f"static_{p}": isolated(protect=p, source="static") for p in (0.2, 0.5)},
    **{f"probe_{p}": isolated(protect=p, source="file") for p in (0.2, 0.5)},
    **{f"random_{p}": isolated(protect=p, choose="random") for p in (0.2, 0.5)},
    **{f"random_static_{p}": isolated(protect=p, choose="random", source="static") for p in (0.2, 0.5)},
    **{f"inverse_{p}": isolated(protect=p, choose="bottom") for p in (0.2, 0.5)},
    "half": isolated(protect=0.5, choose="random", source="static", granularity="tensor"),
    **{f"ewc_{w}": {**OFF, "penalty": {"kind": "ewc", "weight": w}} for w in (0.01, 0.1)},
    **{f"l2_{w}": {**OFF, "penalty": {"kind": "l2_init", "weight": w}} for w in (0.001, 0.01)},
    "lora": {**OFF, "lora": {"rank": 8, "alpha": 16}, "lr_factor": 4.0},
    "epi_theta_g": isolated(protect=0.2, score="theta_g"),
    "epi_adam": isolated(protect=0.2, score="adam"),
    "epi_max": isolated(protect=0.2, normalise="max"),
    "epi_rank": isolated(protect=0.2, normalise="rank"),
    "epi_row": isolated(protect=0.2, granularity="row"),
    "epi_reset": isolated(protect=0.2, on_release="reset"),
    "epi_soft": isolated(protect=0.2, mask="soft"),
    "epi_slow": isolated(protect=0.2, beta=0.999),
}
"""Name to what differs from the study's settings. `probe` takes the mask of what moved most in a run on all tasks;
`lr_factor` multiplies the learning rate."""
FEW = ("full", "lr_0.25", "epi_0.2", "epi_tasks_0.2", "static_0.2", "random_0.2", "half")
"""Those that are run with all tasks mixed as well."""
