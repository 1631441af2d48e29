"""Units of work on a pool of Ray Data actors: committed one by one, resumed by key, retried, set aside.

A stage cuts its work into units (a tree, a question). Each actor holds one worker, which runs many units at
once on one event loop, so that an engine always has requests to batch and no unit waits for another. A finished
unit is committed as one file before its row is reported, so a killed driver or actor loses only what was in flight.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from raylm import room
from raylm.errors import EngineDied, UserError
from raylm.llm.config import ComputeConfig
from raylm.progress import Progress
from raylm.storage import Store

SNAPSHOTS = "snapshots"
"""Folder of unfinished units; a worker may keep one there under `snapshot_name`."""
RUNNING = "running"
"""Folder of marks that an actor leaves on units while it has them; those that are left over show where one died."""
_META = b"raylm"


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work: `key` names its file, `payload` is JSON data for the worker."""

    key: str
    payload: dict[str, Any]


class Worker(Protocol):
    """What an actor runs. It is constructed in the actor's process."""

    async def start(self) -> None:
        """Load what is expensive; called before the first unit and again after an EngineDied."""
        ...

    async def run(self, unit: Unit, store: Store) -> tuple[pa.Table, dict[str, Any]]:
        """Do one unit.

        Returns:
            its rows, which must depend on the unit alone, and a summary of facts that may differ between equal
            runs (seconds, cache hits), as JSON data.
        """
        ...

    async def close(self) -> None:
        """Free what `start` loaded."""
        ...


@dataclass(slots=True)
class UnitsReport:
    """How a set of units ended."""

    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Summary of every finished unit by key, those of earlier runs included."""
    failed: dict[str, str] = field(default_factory=dict)
    """Error of every unit that was set aside, by key."""
    resumed: int = 0
    """Units that an earlier run had finished."""
    seconds: float = 0.0
    """Wall-clock seconds of this run."""


def unit_key(*parts: object) -> str:
    """A file-name-safe key that is the same for equal parts in every process."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:20]


_own: set[str] = set()
"""Addresses of the clusters that this process started."""


def ensure_ray() -> None:
    """Connect to the cluster of this job, or start a local one without a dashboard."""
    import ray
    from ray.data import DataContext

    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if os.environ.get("RAY_ADDRESS"):
            ray.init(logging_level="warning", log_to_driver=False)
        else:
            # Ray Data's pools log an error about their own constructor arguments at every start (ray#53727).
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            with _without_lines("Set ray log level from environment variable"):
                ray.init(address="local", include_dashboard=False, logging_level="error", log_to_driver=False)
            own_token()
            _own.add(ray.get_runtime_context().gcs_address)
    DataContext.get_current().enable_progress_bars = False
    # Its warnings are about memory reservations, which the config decides, and would stand among our progress lines.
    DataContext.get_current().issue_detectors_config.detectors = []
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it announces that its bars are off


def nodes() -> list[dict[str, float]]:
    """Connect to Ray; returns the resources of each node that is there now."""
    import ray

    ensure_ray()
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def ensure_room(wanted: int, cpus: float, gpus: float, keys: str, needed: int | None = None) -> None:
    """Connect to Ray, and check by `room.check` that so many workers fit.

    Raises:
        UserError: they do not.
    """
    import ray

    room.check(nodes(), wanted, cpus, gpus, keys, own=ray.get_runtime_context().gcs_address in _own, needed=needed)


def own_token() -> Path | None:
    """The token that Ray made for this user's clusters, if it did; nobody else may read it from now on.

    Ray leaves that to the umask, and whoever has the token runs code on the cluster.
    """
    token = Path.home() / ".ray" / "auth_token"
    if not token.exists():
        return None
    token.chmod(0o600)
    return token


@contextlib.contextmanager
def _without_lines(unwanted: str) -> Iterator[None]:
    """Hold back what C++ and Python write to standard error, and then pass on all but the lines with `unwanted`."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            held.seek(0)
            os.write(2, b"".join(line for line in held if unwanted.encode() not in line))
            os.close(shown)


def run_units(
    units: Sequence[Unit],
    worker: type[Worker],
    worker_args: dict[str, Any],
    store: Store,
    compute: ComputeConfig,
    *,
    label: str,
    noun: str,
    note: Callable[[dict[str, Any]], str] = lambda summary: "",
) -> UnitsReport:
    """Run every unit that `store` does not hold yet, and wait for all of them.

    Args:
        units: the work; keys are distinct.
        worker: class constructed with `worker_args` in every actor.
        worker_args: picklable keyword arguments.
        store: the stage's directory; finished units become parts/KEY.parquet.
        compute: the actors.
        label: name of the stage, for the progress line.
        noun: what a unit is called, in the plural.
        note: text shown beside the progress, from the newest unit's summary.

    Raises:
        UserError: a worker found bad input.
        EngineDied: an engine died again and again without finishing a unit.
    """
    done = finished_keys(store)
    pending = [unit for unit in units if unit.key not in done]
    report = UnitsReport(resumed=len(units) - len(pending))
    for folder in ("failed", RUNNING):
        store.remove(folder)
    with Progress(label, len(units), noun, done=report.resumed) as progress:
        if pending:
            keys = "compute.min_workers, .cpus, .gpus"
            ensure_room(compute.min_workers, compute.cpus, compute.gpus, keys, needed=1)
            for row in _stream(pending, worker, worker_args, store, compute):
                summary = json.loads(row["summary"])
                if row["error"]:
                    report.failed[row["key"]] = row["error"]
                    store.write_json(f"failed/{row['key']}.json", {"key": row["key"], "error": row["error"]})
                progress.advance(note=note(summary) if summary else "")
        report.seconds = progress.elapsed
    store.remove(RUNNING)
    for unit in units:
        if unit.key not in report.failed:
            report.summaries[unit.key] = read_summary(store, unit.key)
    return report


def snapshot_name(key: str) -> str:
    """File in which a worker may save an unfinished unit, to go on from; it is removed once the unit is committed."""
    return f"{SNAPSHOTS}/{key}.json"


def commit(store: Store, key: str, table: pa.Table, summary: dict[str, Any]) -> None:
    """Make a unit finished: its rows and its summary are one file, and its snapshot goes."""
    store.write_table(f"parts/{key}.parquet", table.replace_schema_metadata({_META: json.dumps(summary).encode()}))
    store.remove(snapshot_name(key))


def finished_keys(store: Store) -> set[str]:
    """Keys of the units that are committed."""
    return {name.removesuffix(".parquet") for name in store.names("parts") if name.endswith(".parquet")}


def read_unit(store: Store, key: str) -> pa.Table:
    """The rows of a finished unit."""
    return store.read_table(f"parts/{key}.parquet").replace_schema_metadata(None)


def read_summary(store: Store, key: str) -> dict[str, Any]:
    """The summary of a finished unit."""
    metadata = store.read_table(f"parts/{key}.parquet").schema.metadata or {}
    return json.loads(metadata.get(_META, b"{}"))


def check_failures(report: UnitsReport, total: int, max_share: float, store: Store, noun: str) -> None:
    """Refuse a stage in which too many units were set aside.

    Raises:
        UserError: more than `max_share` of `total` failed; the message shows the first error.
    """
    if len(report.failed) > max_share * total:
        first = next(iter(report.failed.values()))
        raise UserError(
            f"{len(report.failed)} of {total} {noun} failed, more than max_failed_share={max_share} allows; "
            f"first: {first} (each error is in {store.url}/failed/; a re-run tries them again)"
        )


def _stream(
    pending: Sequence[Unit], worker: type[Worker], worker_args: dict[str, Any], store: Store, compute: ComputeConfig
) -> Iterator[dict[str, Any]]:
    import ray.data

    from raylm.unit_actor import UnitActor

    # Small blocks keep every actor busy to the end; large jobs get blocks of many units so that Ray tracks few objects.
    slots = compute.max_workers * compute.in_flight
    # Ray adds actors once the running ones have a queue; a pool of fixed size needs none.
    queued = compute.in_flight * (2 if compute.max_workers > compute.min_workers else 1)
    per_block = max(1, len(pending) // (slots * 16))
    wanted: dict[str, Any] = {"resources": compute.resources} if compute.resources else {}
    if compute.accelerator_type:
        wanted["accelerator_type"] = compute.accelerator_type
    items = [{"key": unit.key, "payload": json.dumps(unit.payload)} for unit in pending]
    dataset = ray.data.from_items(items, override_num_blocks=-(-len(items) // per_block))
    dataset = dataset.map_batches(
        UnitActor,
        fn_constructor_kwargs={
            "worker": worker,
            "worker_args": worker_args,
            "store": store,
            "attempts": compute.max_attempts,
            "folder": os.getcwd(),
        },
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=compute.min_workers,
            max_size=max(compute.min_workers, compute.max_workers),
            max_tasks_in_flight_per_actor=queued,
            max_concurrent_calls_per_actor=compute.in_flight,
        ),
        num_cpus=compute.cpus,
        num_gpus=compute.gpus,
        **wanted,
    )
    for row in dataset.iter_rows():
        if row["fatal"]:
            # Sent as a row: an error raised inside Ray Data arrives wrapped, without its cause.
            raise {"UserError": UserError, "EngineDied": EngineDied}[row["fatal"]](row["error"])
        yield row
