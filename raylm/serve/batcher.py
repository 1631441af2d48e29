"""Batches for one model: whatever waits when the model is free goes through it together.

At low load a request waits for nothing; under load batches grow by themselves. There is no waiting time to tune, as
with batches that are closed by the clock before the model is free.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar


class Sized(Protocol):
    """A request for the model."""

    @property
    def size(self) -> int:
        """Texts in it."""
        ...


JobT = TypeVar("JobT", bound=Sized)
ResultT = TypeVar("ResultT")
Run = Callable[[list[JobT]], Awaitable[Sequence["ResultT | BaseException"]]]
One = Callable[[JobT], Awaitable[ResultT]]
Waiting = tuple[JobT, "asyncio.Future[ResultT]"]


def batched(run: Run[JobT, ResultT], size: int) -> One[JobT, ResultT]:
    """A function of one job, which runs batches of them.

    Args:
        run: does some jobs; one result or exception for each.
        size: texts at which a batch is full; a larger job goes alone.
    """
    waiting: deque[Waiting[JobT, ResultT]] = deque()
    worker: asyncio.Task[None] | None = None

    async def work() -> None:
        nonlocal worker
        try:
            while batch := _take(waiting, size):
                await _settle(run, batch)
        finally:
            worker = None

    async def one(job: JobT) -> ResultT:
        nonlocal worker
        future: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        waiting.append((job, future))
        if worker is None:
            worker = asyncio.create_task(work())
        return await future

    return one


def _take(
    waiting: deque[tuple[JobT, asyncio.Future[ResultT]]], size: int
) -> list[tuple[JobT, asyncio.Future[ResultT]]]:
    batch: list[tuple[JobT, asyncio.Future[ResultT]]] = []
    texts = 0
    while waiting:
        job, future = waiting[0]
        if batch and texts + job.size > size:
            break
        waiting.popleft()
        if not future.done():  # nobody waits for those that timed out or went away
            batch.append((job, future))
            texts += job.size
    return batch


async def _settle(run: Run[JobT, ResultT], batch: list[Waiting[JobT, ResultT]]) -> None:
    try:
        results = await run([job for job, _ in batch])
    except Exception as error:  # whatever it is, those who wait must hear of it
        results = [error] * len(batch)
    for (_, future), result in zip(batch, results, strict=True):
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
