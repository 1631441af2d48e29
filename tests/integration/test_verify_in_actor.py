"""A verifier pool inside a Ray actor: checks hang there too, and its processes end with the actor."""

import time

import psutil
import pytest

from raylm.records import Problem
from raylm.tasks.config import VerifierConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")

GOLD = Problem("p", "t", "What is 9 + 9?", "18", "math")


def make_actor():
    import ray

    @ray.remote(num_cpus=0.5)
    class Actor:
        """Async, so that `verify` runs off the actor's main thread."""

        def __init__(self):
            from raylm.tasks.verify import VerifierPool

            self.pool = VerifierPool(VerifierConfig(timeout=5))

        async def verify(self, response):
            found = await self.pool.verify(GOLD, response)
            return found.verdict, found.reason

        async def children(self):
            return [child.pid for child in psutil.Process().children(recursive=True)]

    return Actor.remote()


def test_checks_in_an_actor_are_killed_and_leave_nothing_behind():
    import ray

    actor = make_actor()
    requests = ["Answer: $10^{10^{10}}$", "Answer: \\frac{36}{2}", "Answer: \\frac{35}{2}", "Answer: 18"]
    found = ray.get([actor.verify.remote(response) for response in requests])
    assert [verdict for verdict, _ in found] == ["unverifiable", "correct", "wrong", "correct"]
    assert "longer than 5 s" in found[0][1]
    assert ray.get(actor.verify.remote("Answer: \\frac{34}{2}"))[0] == "wrong"  # in a new process if the trap came last
    children = ray.get(actor.children.remote())
    assert children
    ray.kill(actor)
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
