"""The actor behind `raylm.units`: one worker, many units at once, and what happens when something dies under them.

A failure of a unit costs it one of its tries. A death of the engine, or of the whole process, is nobody's fault at
first: everything in flight starts again. Units that were in flight at two deaths run alone from then on, so that the
next death names the unit that brings it about; that one is set aside, and the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from raylm.errors import EngineDied, UserError
from raylm.storage import Store
from raylm.units import RUNNING, Unit, Worker, commit, read_summary

if TYPE_CHECKING:
    import numpy as np

_DEATHS_OF_A_SUSPECT = 2
_RESTARTS_WITHOUT_PROGRESS = 5


class UnitActor:
    """Ray Data's callable."""

    def __init__(
        self, worker: type[Worker], worker_args: dict[str, Any], store: Store, attempts: int, folder: str = ""
    ) -> None:
        """Construct the worker where `folder`, the driver's directory, is this process's too, if it is there."""
        if folder:
            with contextlib.suppress(OSError):  # on another machine relative paths mean what they mean there
                os.chdir(folder)
        self.worker = worker(**worker_args)
        self.store, self.attempts = store, attempts
        self.deaths: Counter[str] = Counter()  # of the engine or the process, by the units in flight
        self.generation = 0  # how often the worker has been started
        self.fruitless = 0  # restarts since a unit last finished
        self.lock = asyncio.Lock()
        self.gate = _Gate()

    async def __call__(self, batch: dict[str, np.ndarray]) -> AsyncIterator[dict[str, list[str]]]:
        unit = Unit(str(batch["key"][0]), json.loads(str(batch["payload"][0])))
        fatal = ""
        try:
            summary, error = await self._finish(unit)
        except (UserError, EngineDied) as failure:
            fatal = "UserError" if isinstance(failure, UserError) else "EngineDied"
            summary, error = {}, str(failure)
        yield {"key": [unit.key], "summary": [json.dumps(summary)], "error": [error], "fatal": [fatal]}

    async def _finish(self, unit: Unit) -> tuple[dict[str, Any], str]:
        """Bring a unit to its end: (summary, "") or ({}, the error for which it is set aside)."""
        if await asyncio.to_thread(self.store.exists, f"parts/{unit.key}.parquet"):
            return await asyncio.to_thread(read_summary, self.store, unit.key), ""  # committed as its actor died
        if self._left_by_a_dead_actor(unit):
            return {}, "its process died when it ran alone, killed from outside (often the kernel, out of memory)"
        await self._restart(0)
        error, tries = "", 0
        while tries < self.attempts:
            alone = self.deaths[unit.key] >= _DEATHS_OF_A_SUSPECT
            async with self.gate.enter(alone):
                self._mark(unit, alone)
                async with self.lock:  # while the worker is being started again there is nothing to run on
                    generation = self.generation
                try:
                    return await self._run(unit), ""
                except EngineDied as death:
                    self.deaths[unit.key] += 1
                    await self._restart(generation, death)
                    if alone:
                        return {}, f"the engine died when this ran alone: {death}"
                except UserError:
                    raise
                except Exception as failure:
                    tries += 1
                    error = "".join(traceback.format_exception_only(failure)).strip()
        return {}, error

    async def _run(self, unit: Unit) -> dict[str, Any]:
        start = time.monotonic()
        table, summary = await self.worker.run(unit, self.store)
        self.fruitless = 0
        summary["seconds"] = time.monotonic() - start
        await asyncio.to_thread(commit, self.store, unit.key, table, summary)
        self.store.remove(_mark_name(unit))
        return summary

    def _mark(self, unit: Unit, alone: bool) -> None:
        """Leave on disk that this actor has the unit, for the case that it does not live to report it."""
        self.store.write_json(_mark_name(unit), {"deaths": self.deaths[unit.key], "alone": alone})

    def _left_by_a_dead_actor(self, unit: Unit) -> bool:
        """Take over what an actor that died knew of a unit; whether the unit had been alone with it."""
        if not self.store.exists(_mark_name(unit)):
            return False
        mark = self.store.read_json(_mark_name(unit))
        self.deaths[unit.key] = mark["deaths"] + 1
        return bool(mark["alone"])

    async def _restart(self, generation: int, death: EngineDied | None = None) -> None:
        """Start the worker unless another unit has done so since `generation`."""
        async with self.lock:
            if self.generation != generation:
                return
            if death is not None:
                self.fruitless += 1
                if self.fruitless > _RESTARTS_WITHOUT_PROGRESS:
                    raise EngineDied(f"the engine died {self.fruitless} times without finishing a unit: {death}")
                await self.worker.close()
            await self.worker.start()
            self.generation += 1


class _Gate:
    """Lets units in side by side, or one of them alone."""

    def __init__(self) -> None:
        self.inside, self.closed = 0, False
        self.changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def enter(self, alone: bool) -> AsyncIterator[None]:
        """Wait for a place; one that goes in alone waits until all others are out and keeps new ones out."""
        async with self.changed:
            await self.changed.wait_for(lambda: not self.closed and not (alone and self.inside))
            self.inside, self.closed = self.inside + 1, alone
        try:
            yield
        finally:
            async with self.changed:
                self.inside, self.closed = self.inside - 1, False
                self.changed.notify_all()


def _mark_name(unit: Unit) -> str:
    return f"{RUNNING}/{unit.key}.json"
