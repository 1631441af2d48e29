"""Whether the cluster has room for the actors and workers that a stage asks for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from raylm.errors import UserError


def places(node: Mapping[str, float], cpus: float, gpus: float, taken: float = 0.0) -> int:
    """Workers of so many CPUs and GPUs that a node has room for, beside `taken` CPUs; 0 where neither is asked for."""
    rooms = []
    if cpus:
        rooms.append((node.get("CPU", 0.0) - taken + 1e-9) // cpus)
    if gpus:
        rooms.append((node.get("GPU", 0.0) + 1e-9) // gpus)
    return max(0, int(min(rooms))) if rooms else 0


def check(
    nodes: Sequence[Mapping[str, float]],
    wanted: int,
    cpus: float,
    gpus: float,
    keys: str,
    *,
    own: bool,
    needed: int | None = None,
) -> None:
    """Refuse workers that will never start; on a cluster that may still grow, say what is waited for.

    Args:
        nodes: resources of each.
        wanted: workers that are to run at once.
        cpus: of each.
        gpus: of each.
        keys: of the config that say so, for the message.
        own: whether the cluster is this process's own, on this machine, and stays as it is.
        needed: workers without which no work is done: all of a training, one of a pool; None: `wanted`.

    Raises:
        UserError: it is, and they do not fit.
    """
    if not cpus and not gpus:
        return
    room = sum(places(node, cpus, gpus) for node in nodes)
    if room >= wanted:
        return
    asked = f"{wanted} x {cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
    have = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes[:8])
    if own and room < (wanted if needed is None else needed):
        raise UserError(f"{keys}: {asked} are asked for, and this machine has {have}: ask for less")
    if own:
        print(f"{asked} are asked for ({keys}), and this machine has {have}: {room} run", file=sys.stderr, flush=True)
        return
    print(f"waiting for {asked} ({keys}); the cluster has room for {room} now ({have})", file=sys.stderr, flush=True)
