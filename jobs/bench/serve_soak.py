"""The soak: scores, searches and upserts for minutes, while replicas are killed one after the other."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from jobs.bench import load, serve_setup

REPLICAS = 2
SHARE = 0.8
"""Of the rate that one replica reached."""


def run(
    folder: Path, model: Path, known: dict[tuple[str, str], float], options: argparse.Namespace, rate: float
) -> list[dict[str, Any]]:
    """Rows of the soak; the last one has its figures."""
    retriever = {"docs": {"index": str(serve_setup.index(folder)), "journal": str(folder / "journal")}}
    with serve_setup.served(
        "all", folder, model, haproxy=not options.no_haproxy, replicas=REPLICAS, retriever=retriever
    ) as (address, token):
        written: dict[str, str] = {}
        asks = mixed(known, written)
        asyncio.run(load.load(address, asks, clients=2, seconds=10, token=token))  # warm
        with Killer(options.kill_every) as killer:
            outcome = asyncio.run(
                load.load(
                    address, asks, clients=options.clients, seconds=60 * options.soak, rate=SHARE * rate, token=token
                )
            )
        lost = sum(not _there(address, token, id, text) for id, text in written.items())
    row = {"what": "soak", "kills": killer.kills, "memory": killer.memory, "written": len(written), **outcome.row()}
    figures = {
        "soak_minutes": options.soak,
        "soak_kills": len(killer.kills),
        "soak_answers": len(outcome.latencies),
        "soak_wrong_answers": outcome.wrong,
        "soak_lost_upserts": lost,
        "soak_acknowledged_upserts": len(written),
        "soak_retryable_errors": sum(outcome.retryable.values()),
        "soak_other_errors": sum(outcome.failed.values()),
        "soak_p99_ms": outcome.quantile(0.99),
        "soak_memory_growth_mib_per_minute": killer.growth(),
    }
    print(figures, outcome.retryable, outcome.failed, file=sys.stderr, flush=True)
    return [row, {"what": "soak figures", **figures}]


def mixed(known: dict[tuple[str, str], float], written: dict[str, str]) -> Iterator[load.Ask]:
    """Eight scores, a search of the fixed documents, and an upsert of a new one, in turn."""
    scores, draws, number = load.score_asks(known), random.Random(0), 0
    while True:
        for _ in range(8):
            yield next(scores)
        place = draws.randrange(200)
        search = {"query": f"base{place}", "mode": "bm25", "k": 3}
        yield load.Ask("/v1/search", search, lambda answer, place=place: _found(answer) == [f"base-{place}"])
        id, text, number = f"new-{number % 150}", f"token{number} written", number + 1
        body = {"documents": [{"id": id, "text": text}]}
        yield load.Ask("/v1/documents", body, acknowledged=lambda id=id, text=text: _remember(written, id, text))


def _remember(written: dict[str, str], id: str, text: str) -> None:
    """Of two writes of one document that overlap, the larger number was sent last."""
    if int(text.split(maxsplit=1)[0][5:]) > int(written.get(id, "token-1 ").split()[0][5:]):
        written[id] = text


def _found(answer: Any) -> list[str]:
    return [hit["id"] for hit in answer["data"][0]["hits"]]


def _there(address: str, token: str, id: str, text: str) -> bool:
    """Whether a document is found by its word; a later write that was not acknowledged may have replaced it."""
    body = json.dumps({"query": "written", "mode": "bm25", "k": 500}).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/v1/search", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        hits = json.loads(answer.read())["data"][0]["hits"]
    found = {hit["id"]: hit["text"] for hit in hits}
    return id in found and int(found[id].split()[0][5:]) >= int(text.split(maxsplit=1)[0][5:])


class Killer:
    """Kills a replica's process again and again, and looks at the memory of all of them."""

    def __init__(self, every: float) -> None:
        self.every, self.kills, self.memory = every, [], []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Killer:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def growth(self) -> float:
        """MiB a minute by which the oldest replica grew in its second half; 0 when none lived long enough."""
        longest: list[tuple[float, float]] = []
        for pid in {pid for row in self.memory for pid in row["mib"]}:
            own = [(row["second"], row["mib"][pid]) for row in self.memory if pid in row["mib"]]
            longest = max(longest, own, key=len)
        half = longest[len(longest) // 2 :]
        if len(half) < 2:
            return 0.0
        return 60 * (half[-1][1] - half[0][1]) / (half[-1][0] - half[0][0])

    def _work(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(5.0):
            mine = replicas()
            sizes = {str(process.pid): process.memory_info().rss / 2**20 for process in mine if process.is_running()}
            self.memory.append({"second": round(time.monotonic() - self._start), "mib": sizes})
            if time.monotonic() - last >= self.every and mine:
                last = time.monotonic()
                victim = mine[len(self.kills) % len(mine)]
                self.kills.append({"second": round(last - self._start), "name": victim.name(), "pid": victim.pid})
                os.kill(victim.pid, signal.SIGKILL)


def replicas() -> list[psutil.Process]:
    """Processes of this benchmark's models; the gateway holds none."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "ServeReplica" in line and "Gateway" not in line:
            found.append(process)
    return sorted(found, key=lambda process: process.pid)
