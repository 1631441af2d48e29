"""Results files of benchmarks and studies: what was measured, by which command, on what, with the raw rows beside."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5% points of Student's t by degrees of freedom."""


def write(
    name: str,
    figures: Mapping[str, Any],
    raw: Sequence[Mapping[str, Any]],
    *,
    intervals: Mapping[str, Sequence[float]] | None = None,
    seeds: Sequence[int] = (0,),
) -> Path:
    """Write jobs/NAME.json and the rows behind it, and return the path.

    Args:
        name: `bench/results/NAME` or `studies/results/NAME`.
        figures: headline numbers by key.
        raw: the rows that the figures were computed from (a repeat, a seed, an item each).
        intervals: [low, high] of 95% intervals by the key of their figure.
        seeds: seeds that were used.
    """
    target = HERE / f"{name}.json"
    rows = target.with_suffix(".jsonl")
    target.parent.mkdir(parents=True, exist_ok=True)
    rows.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in raw))
    record = {
        "name": name.replace("/results/", "/"),
        "command": shlex.join(["python", "-m", *_module_command()]),
        "commit": _git("rev-parse", "HEAD") + ("+changes" if _git("status", "--porcelain", "-uno") else ""),
        "hardware": hardware(),
        "date": datetime.date.today().isoformat(),
        "seeds": list(seeds),
        "figures": dict(figures),
        "intervals": {key: list(value) for key, value in (intervals or {}).items()},
        "raw": rows.name,
    }
    target.write_text(json.dumps(record, indent=1) + "\n")
    return target


def geometric_means(ratios: Mapping[str, Sequence[float]]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Geometric means of ratios over repeats, and their 95% intervals by Student's t on the logarithms.

    A ratio with a single repeat has no interval.
    """
    means: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    for name, each in ratios.items():
        logs = [math.log(ratio) for ratio in each]
        middle = statistics.fmean(logs)
        means[name] = math.exp(middle)
        if len(logs) > 1:
            half = _T95[len(logs) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
            intervals[name] = [math.exp(middle + sign * half) for sign in (-1, 1)]
    return means, intervals


def hardware() -> str:
    """The machine in a few words: cores, memory, GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    words = [f"{os.cpu_count()} CPU cores ({platform.machine()})", f"{memory:.0f} GiB memory"]
    try:
        import torch

        words += [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] or ["no GPU"]
    except ImportError:
        pass
    return ", ".join(words)


def _module_command() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name if spec else Path(sys.argv[0]).stem
    return [module, *sys.argv[1:]]


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip()
