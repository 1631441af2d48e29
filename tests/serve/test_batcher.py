"""Batches that form while the model is busy."""

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.serve.batcher import batched


@dataclass(frozen=True)
class Job:
    number: int
    size: int = 1


def test_what_waits_while_the_model_is_busy_goes_together():
    batches = []

    async def run(jobs):
        batches.append([job.number for job in jobs])
        await asyncio.sleep(0.01)
        return [job.number * 10 for job in jobs]

    async def scene():
        one = batched(run, 4)
        return await asyncio.gather(*(one(Job(number)) for number in range(9)))

    assert asyncio.run(scene()) == [number * 10 for number in range(9)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 8))
def test_every_job_runs_once_in_order_and_no_batch_is_larger_than_it_must_be(sizes, most):
    batches = []

    async def run(jobs):
        batches.append(jobs)
        await asyncio.sleep(0)
        return [job.number for job in jobs]

    async def scene():
        one = batched(run, most)
        return await asyncio.gather(*(one(Job(number, size)) for number, size in enumerate(sizes)))

    assert asyncio.run(scene()) == list(range(len(sizes)))
    assert [job.number for jobs in batches for job in jobs] == list(range(len(sizes)))
    assert all(len(jobs) == 1 or sum(job.size for job in jobs) <= most for jobs in batches)


def test_an_error_reaches_its_own_job_and_a_failing_batch_all_of_its_own():
    async def run(jobs):
        if any(job.number == 9 for job in jobs):
            raise RuntimeError("the whole batch")
        return [ValueError(job.number) if job.number == 1 else job.number for job in jobs]

    async def scene():
        one = batched(run, 3)
        return await asyncio.gather(*(one(Job(number)) for number in (0, 1, 2, 9, 3)), return_exceptions=True)

    found = asyncio.run(scene())
    assert [found[0], found[2]] == [0, 2]
    assert isinstance(found[1], ValueError)
    assert all(str(error) == "the whole batch" for error in found[3:])


def test_a_job_that_nobody_waits_for_is_left_out():
    ran = []

    async def run(jobs):
        ran.extend(job.number for job in jobs)
        await asyncio.sleep(0.02)
        return [job.number for job in jobs]

    async def scene():
        one = batched(run, 1)
        tasks = [asyncio.create_task(one(Job(number))) for number in range(3)]
        await asyncio.sleep(0.005)
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        return await tasks[2]

    assert asyncio.run(scene()) == 2
    assert ran == [0, 2]
