"""A load client for the served API: requests as fast as they are answered, or at a rate, each answer checked.

    python -m jobs.bench.load ADDRESS [--clients N] [--rate N] [--seconds N] [--token TOKEN]

scores random pairs, and prints answers/s, latencies and what failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

WORDS = re.findall(
    r"\w+", "what is the of a to in red blue stone river answer number because four seven house makes light water old"
)
RETRYABLE = {408, 429, 499, 502, 503, 504}
"""Statuses after which a client may ask again; a connection that breaks counts as one."""


@dataclass
class Ask:
    """One request, and how to tell whether its answer is right."""

    path: str
    body: dict[str, Any]
    right: Callable[[Any], bool] = lambda answer: True
    acknowledged: Callable[[], None] = lambda: None


@dataclass
class Outcome:
    """How a load went."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    wrong: int = 0
    retryable: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """Latency in milliseconds."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    def row(self) -> dict[str, Any]:
        """For a results file."""
        return {
            "answers": len(self.latencies), "seconds": self.seconds, "rate": self.rate, "wrong": self.wrong,
            "p50_ms": self.quantile(0.5), "p99_ms": self.quantile(0.99),
            "retryable": dict(self.retryable), "failed": dict(self.failed),
        }  # fmt: skip


async def load(
    address: str, asks: Iterator[Ask], *, clients: int, seconds: float, rate: float | None = None, token: str = ""
) -> Outcome:
    """Ask for some seconds, by so many connections; at a rate, latency counts from when a request was due."""
    import aiohttp

    found, start = Outcome(), time.monotonic()
    due = start

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal due
        while time.monotonic() < start + seconds:
            began = time.monotonic()
            if rate:
                began, due = due, due + 1 / rate
                await asyncio.sleep(max(0.0, began - time.monotonic()))
            await _one(session, address, next(asks), began, found)

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    found.seconds = time.monotonic() - start
    return found


async def _one(session: Any, address: str, ask: Ask, began: float, found: Outcome) -> None:
    import aiohttp

    try:
        async with session.post(address + ask.path, json=ask.body) as answer:
            body = await answer.read()
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        found.retryable[type(error).__name__] += 1
        return
    if answer.status == 200:
        found.latencies.append(time.monotonic() - began)
        found.wrong += not ask.right(json.loads(body))
        ask.acknowledged()
    else:
        (found.retryable if answer.status in RETRYABLE else found.failed)[str(answer.status)] += 1


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Prompts of some 10 and responses of some 20 words."""
    draws = random.Random(seed)
    return [
        (" ".join(draws.choices(WORDS, k=draws.randint(5, 15))), " ".join(draws.choices(WORDS, k=draws.randint(8, 32))))
        for _ in range(count)
    ]


def score_asks(known: dict[tuple[str, str], float] | None = None, count: int = 128) -> Iterator[Ask]:
    """Endless requests for scores; right within 0.001 of those that are known."""
    chosen = list(known) if known else pairs(count)
    while True:
        for prompt, response in chosen:
            score = known[prompt, response] if known else None
            yield Ask(
                "/v1/score",
                {"prompt": prompt, "responses": response},
                lambda answer, score=score: score is None or abs(answer["data"][0]["score"] - score) < 1e-3,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rate", type=float, help="requests a second; as many as are answered if left out")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--token", default="")
    given = parser.parse_args()
    outcome = asyncio.run(
        load(
            given.address,
            score_asks(),
            clients=given.clients,
            seconds=given.seconds,
            rate=given.rate,
            token=given.token,
        )
    )
    print(json.dumps(outcome.row(), indent=1))
