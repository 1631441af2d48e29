"""A Ray Train job with a progress bar, for every stage that trains."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from raylm import telemetry
from raylm.errors import UserError
from raylm.progress import Progress
from raylm.units import ensure_room


class Scaling(Protocol):
    """What a stage's config says of its workers."""

    @property
    def workers(self) -> int: ...
    @property
    def cpus_per_worker(self) -> float: ...
    @property
    def gpus_per_worker(self) -> float: ...
    @property
    def max_failures(self) -> int: ...


Observer = Callable[[dict[str, Any], int], None]
"""Gets the row of a step as the sink got it, and the number of steps of the whole run."""
_observers: list[Observer] = []


@contextlib.contextmanager
def observed(by: Observer) -> Iterator[None]:
    """Let `by` see the rows of whatever run `fit` makes in this process, in their order; called from a thread.

    What it raises ends the run, `SystemExit` too, and is raised by `fit`.
    """
    _observers.append(by)
    try:
        yield
    finally:
        _observers.remove(by)


def fit(
    loop: Callable[[dict[str, Any]], None], arguments: dict[str, Any], config: Scaling, *, title: str, steps: int
) -> float:
    """Run a worker's function on all workers to the end; returns seconds.

    Args:
        loop: gets the arguments, and a `sink` actor whose `add` takes rows with step, loss and a rate by its unit,
            such as `tokens_per_second`; where there is an isolation mask, its `mask_overlap`; after a look also
            `measures`, numbers by the names that the stage's config gives in `measures()`. Its `count` takes what else
            is counted: the unit, how many are done, and of how many.
        arguments: plain data; `root` is the stage's directory, below which Ray Train keeps its state in `train`.
        config: of the stage.
        title: of the progress bar.
        steps: that the bar counts.

    Raises:
        UserError: the worker's own, out of Ray's wrapping; or this machine has no room for the workers.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raylm.train.abort import Announce

    keys = "workers, cpus_per_worker, gpus_per_worker"
    ensure_room(config.workers, config.cpus_per_worker, config.gpus_per_worker, keys)
    # How often Ray's controller takes what the workers report. A worker that has a second checkpoint waits for it: with
    # Ray's own 2 s, a small model with a checkpoint every 4 steps made 2.1 steps/s; with this, 20.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    _drop_torn_snapshot(Path(arguments["root"]) / "train")
    # Where the driver is, so that it outlives any other node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    sink = ray.remote(num_cpus=0, scheduling_strategy=here)(_Sink).remote()
    trainer = TorchTrainer(
        loop,
        train_loop_config={**arguments, "sink": sink},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker},
        ),
        torch_config=TorchConfig(backend="nccl" if config.gpus_per_worker else "gloo"),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=arguments["root"],
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(max(1, int(config.cpus_per_worker)))}},
            callbacks=[Announce(sink)],
        ),
    )
    with Progress(title, steps, "steps") as progress, _watched(sink, progress):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _cause(error) from error
    return progress.elapsed


@contextlib.contextmanager
def _watched(sink: Any, progress: Progress) -> Iterator[None]:
    """Show a run's rows, and pass them to the observers; what one of those raises ends the run, and is raised."""
    stop, raised = threading.Event(), list[BaseException]()
    watcher = threading.Thread(target=_watch, args=(sink, progress, stop, raised), daemon=True)
    watcher.start()
    try:
        yield
    except Exception:
        if raised:
            raise raised[0] from None  # the run ended because of it
        raise
    finally:
        stop.set()
        watcher.join()
    if raised:
        raise raised[0]


class _Sink:
    """Where rank 0 reports its steps, and how far it is with what comes before or between them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.run: Any = None

    def begin(self, controller: Any) -> None:
        self.run = controller

    def controller(self) -> Any:
        return self.run

    def count(self, unit: str, done: int, total: int) -> None:
        self.rows.append({"unit": unit, "done": done, "total": total})

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        for key in ("step", "loss", "tokens_per_second"):
            if key in row:
                telemetry.gauge(f"raylm_train_{key}", row[key])
        if "mask_overlap" in row:
            telemetry.gauge("raylm_mask_overlap", row["mask_overlap"])

    def take(self) -> list[dict[str, Any]]:
        rows, self.rows = self.rows, []
        return rows


def _watch(sink: Any, progress: Progress, stop: threading.Event, raised: list[BaseException]) -> None:
    import ray

    from raylm.train.abort import abort

    last, steps = 0, progress.total
    while True:
        ended = stop.wait(1.0)
        for row in ray.get(sink.take.remote()):
            if "unit" in row:
                progress.reach(row["done"], row["total"], row["unit"])
                continue
            rates = [f"{value:.0f} {key.replace('_per_second', '/s')}" for key, value in row.items() if "_per_" in key]
            if row["step"] <= last:  # repeated after a worker's death
                continue
            try:
                for observer in _observers:
                    observer(row, steps)
            except BaseException as error:  # Ray Tune ends a trial by SystemExit
                raised.append(error)
                abort(ray.get(sink.controller.remote()))
                return
            progress.reach(row["step"], steps, "steps", ", ".join([f"loss {row['loss']:.3f}", *rates]))
            last = row["step"]
        if ended:
            return


def _drop_torn_snapshot(folder: Path) -> None:
    """Delete Ray Train's list of checkpoints where a kill or a full disk has cut it short: it would refuse to start.

    Nothing is lost by that, as ranks look for the newest whole checkpoint themselves.
    """
    file = folder / "checkpoint_manager_snapshot.json"
    try:
        json.loads(file.read_text())
    except FileNotFoundError:
        return
    except ValueError:
        file.unlink()


def _cause(error: BaseException) -> BaseException:
    """What a worker or Ray Train's controller died of, where it is something that the user can mend."""
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    for failure in failures:
        seen: BaseException | None = failure
        while seen is not None:
            cause = getattr(seen, "cause", None) or seen.__cause__
            if isinstance(seen, UserError):
                return UserError(str(getattr(seen, "cause", None) or seen))
            if isinstance(seen, OSError) and seen.errno == errno.ENOSPC:
                return UserError(
                    f"no space left on the disk ({seen}); free some and run the same command again: it goes on from "
                    "the last whole checkpoint"
                )
            seen = cause
    return error
