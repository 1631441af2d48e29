"""How many trials fit on a cluster at once.

A trial whose driver runs while its workers wait for room, beside others of its kind, is a deadlock: so the number of
trials at once is what fits with all workers of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylm.errors import UserError
from raylm.room import places


@dataclass(frozen=True, slots=True)
class Need:
    """What one trial needs; workers lie on any nodes, each on one."""

    workers: int
    cpus: float
    """Of a worker."""
    gpus: float
    """Of a worker."""
    driver_cpus: float


def fits(nodes: Sequence[Mapping[str, float]], need: Need) -> int:
    """Trials that surely fit at once.

    Args:
        nodes: resources of each node, with `CPU` and `GPU`.
        need: of a trial.

    Returns:
        the largest number n for which drivers, laid first on the nodes with the most CPUs left over by their workers,
        still leave places for n times as many workers; 0 where not even one trial fits.
    """
    most = int(sum(_places(node, need) for node in nodes) // need.workers)
    for count in range(most, 0, -1):
        if _leaves_room(nodes, need, count):
            return count
    return 0


def concurrent(nodes: Sequence[Mapping[str, float]], need: Need, wanted: int) -> int:
    """Trials to run at once: as many as fit, and at most `wanted` where that is not 0.

    Raises:
        UserError: not a single trial fits, or fewer than wanted.
    """
    found = fits(nodes, need)
    have = f"{sum(node.get('CPU', 0) for node in nodes):g} CPUs and {sum(node.get('GPU', 0) for node in nodes):g} GPUs"
    asked = f"{need.workers} workers with {need.cpus:g} CPUs and {need.gpus:g} GPUs each"
    asked += f" and {need.driver_cpus:g} CPUs for its driver" if need.driver_cpus else ""
    if found == 0:
        raise UserError(
            f"no trial fits on the cluster: it needs {asked}, and {len(nodes)} nodes have {have} together; "
            "lower base.workers or base.cpus_per_worker, or add nodes"
        )
    if wanted > found:
        raise UserError(
            f"max_concurrent={wanted}: only {found} fit at once ({asked}; {len(nodes)} nodes with {have}); the others' "
            "drivers would wait for workers that never get a place"
        )
    return wanted or found


def _places(node: Mapping[str, float], need: Need, taken: float = 0.0) -> int:
    """Workers that a node has room for beside CPUs that are taken."""
    return places(node, need.cpus, need.gpus, taken)


def _leaves_room(nodes: Sequence[Mapping[str, float]], need: Need, count: int) -> bool:
    """Whether `count` drivers and their workers fit: each driver goes where it costs the fewest places of workers."""
    taken = [0.0] * len(nodes)
    for _ in range(count if need.driver_cpus else 0):
        costs = {
            number: _places(node, need, taken[number]) - _places(node, need, taken[number] + need.driver_cpus)
            for number, node in enumerate(nodes)
            if node.get("CPU", 0.0) - taken[number] + 1e-9 >= need.driver_cpus
        }
        if not costs:
            return False
        taken[min(costs, key=lambda number: (costs[number], number))] += need.driver_cpus
    places = sum(_places(node, need, used) for node, used in zip(nodes, taken, strict=True))
    return places >= count * need.workers
