"""What do clients of Ray Serve notice when the head is lost and comes back, with GCS fault tolerance in Redis?

    python -m jobs.bench.headloss [--away 10] [--repeats 1]

A redis-server, a head without CPUs and a worker node are started here, and a deployment of two replicas on the worker.
A client asks without pause; then the head is killed with all its processes, stays away, and is started again on the
same address. retried_requests: first tries that failed and went through on one of three more; failed_requests: those
that did not; replicas_kept: whether the same two processes answer before, meanwhile and afterwards; recovery_seconds:
from the new head's start until Serve takes a new version of the deployment. Needs redis-server. Result:
bench/results/headloss.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from jobs import results

ROOT = Path(__file__).parent.parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
PORT, REDIS, HTTP = 26579, 26580, 26581
TRIES = 4
DEPLOY = """
import os, sys
import ray
from ray import serve

VERSION = sys.argv[1]  # pickled with the class; a replica's own arguments are others

@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.5})
class Echo:
    async def __call__(self, request):
        return {"pid": os.getpid(), "version": VERSION}

ray.init(log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])}, proxy_location="EveryNode")
serve.run(Echo.bind(), name="echo")
"""


class Client(threading.Thread):
    """Asks until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.rows: list[dict[str, Any]] = []
        """start, tries (TRIES + 1 when all failed), seconds, pid, version."""

    def run(self) -> None:
        while not self.ended.wait(0.05):
            row = {"start": time.monotonic(), "tries": TRIES + 1}
            for attempt in range(1, TRIES + 1):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{HTTP}/", timeout=10) as answer:
                        row |= {**json.loads(answer.read()), "tries": attempt}
                        break
                except OSError:
                    time.sleep(0.2)
            self.rows.append(row | {"seconds": time.monotonic() - row["start"]})

    def seen(self, since: float, until: float) -> list[dict[str, Any]]:
        """Rows that started between two moments."""
        return [row for row in list(self.rows) if since <= row["start"] < until]


def main(away: float, repeats: int) -> None:
    """Measure, write the result."""
    rows = [_one(away, repeat) for repeat in range(repeats)]
    figures: dict[str, Any] = {name: sum(row[name] for row in rows) for name in ("requests", "failed_requests")}
    figures["retried_requests"] = sum(row["retried_requests"] for row in rows)
    figures["requests_while_away"] = sum(row["requests_while_away"] for row in rows)
    figures["replicas_kept"] = all(row["replicas_kept"] for row in rows)
    figures["recovery_seconds"] = statistics.median(row["recovery_seconds"] for row in rows)
    figures |= {"away_seconds": away, "load_average": os.getloadavg()[1]}
    print(results.write("bench/results/headloss", figures, rows))


def _one(away: float, repeat: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    password = os.urandom(16).hex()
    environment = {
        **os.environ, "RAY_AUTH_MODE": "disabled", "RAY_REDIS_ADDRESS": f"127.0.0.1:{REDIS}",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "300", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    redis = subprocess.Popen(
        ["redis-server", "--port", str(REDIS), "--bind", "127.0.0.1", "--requirepass", password, "--save", "",
         "--dir", str(folder)], stdout=subprocess.DEVNULL,
    )  # fmt: skip
    head_command = [
        RAY, "start", "--head", "--block", "--num-cpus=0", f"--port={PORT}", f"--redis-password={password}",
        "--include-dashboard=false", f"--temp-dir={folder}/ray", "--node-ip-address=127.0.0.1",
    ]  # fmt: skip
    head = worker = None
    client = Client()
    try:
        head = _started(head_command, environment, folder)
        command = [
            RAY,
            "start",
            f"--address=127.0.0.1:{PORT}",
            "--block",
            "--num-cpus=2",
            "--node-ip-address=127.0.0.1",
        ]
        worker = _started(command, {**environment, "RAY_REDIS_PASSWORD": password}, folder)
        _deploy("first", environment)
        client.start()
        time.sleep(away)
        lost = time.monotonic()
        _kill(head)
        time.sleep(away)
        # Not on a new head's disk; here, beside the worker's raylet, it looks like a head that still runs.
        (folder / "ray/ray_current_cluster").unlink(missing_ok=True)
        back = time.monotonic()
        head = _started(head_command, environment, folder)
        while not _deploy("second", environment, check=False):
            time.sleep(1.0)
        while not any(row.get("version") == "second" for row in client.rows[-5:]):
            time.sleep(0.2)
        recovered = time.monotonic()
        client.ended.set()
        client.join(60)
        return _row(client, repeat, lost, back, recovered)
    finally:
        client.ended.set()
        for process in (worker, head, redis):
            if process is not None:
                _kill(process)


def _row(client: Client, repeat: int, lost: float, back: float, recovered: float) -> dict[str, Any]:
    """What was seen, of the first version up to the second's deployment."""
    before, meanwhile = client.seen(0.0, lost), client.seen(lost, back)
    pids = [{row["pid"] for row in rows if "pid" in row} for rows in (before, meanwhile)]
    return {
        "repeat": repeat,
        "requests": len(client.rows),
        "requests_while_away": len(meanwhile),
        "retried_requests": sum(1 < row["tries"] <= TRIES for row in client.rows),
        "failed_requests": sum(row["tries"] > TRIES for row in client.rows),
        "replicas_kept": pids[0] == pids[1] and len(pids[0]) == 2,
        "recovery_seconds": recovered - back,
        "slowest_seconds": max(row["seconds"] for row in client.rows),
    }


def _deploy(version: str, environment: dict[str, str], check: bool = True) -> bool:
    command = [sys.executable, "-c", DEPLOY, version, str(HTTP)]
    address = {**environment, "RAY_ADDRESS": f"127.0.0.1:{PORT}"}
    done = subprocess.run(command, env=address, check=check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done.returncode == 0


def _started(command: list[str], environment: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    log = folder / f"log-{time.monotonic_ns()}"
    with log.open("w") as sink:
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT)
    while "Ray runtime started" not in log.read_text():
        if process.poll() is not None:
            raise RuntimeError(log.read_text()[-2000:])
        time.sleep(0.1)
    return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a node at once, with all that runs on it."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for each in [process, *family]:
        try:
            each.send_signal(signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--away", type=float, default=10.0, help="seconds for which the head is lost")
    parser.add_argument("--repeats", type=int, default=1, help="losses")
    options = parser.parse_args()
    main(options.away, options.repeats)
