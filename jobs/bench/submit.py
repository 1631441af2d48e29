"""How long until a submitted job says something, and how many trials an hour a sweep makes at micro size?

    python -m jobs.bench.submit [--repeats 3] [--trials 6]

A head with two CPUs and token authentication is started here. submit_to_first_log_seconds: from calling `raylm submit`
to the first line of the job's own log, upload and environment included, after one job that is not counted;
submit_to_exit_seconds: to its exit code, for a search of two problems with the scripted engine. trials_per_hour: of a
sweep over a classifier on a frozen encoder with 24 texts. Result: bench/results/submit.json.
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
import time
from pathlib import Path
from typing import Any

from jobs import results

ROOT = Path(__file__).parent.parent.parent
SUMS = "problems=[{name: chain_sum, part: train, limit: 2, seed: 1, params: {min_terms: 2, max_terms: 3}}]"
ENGINE = "engine={kind: scripted, model: micro, context: 512}"
PLACES, BEASTS = ("harbour", "station", "market", "museum"), ("otter", "falcon", "badger", "salmon")
DASHBOARD = "http://127.0.0.1:28265"


def main(repeats: int, trials: int) -> None:
    """Measure on one head, write the result."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    token = folder / "token"
    token.write_text(os.urandom(32).hex())
    token.chmod(0o600)
    environment = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # jobs run the `python` of the head's PATH
    }  # fmt: skip
    head = _head(folder, environment)
    try:
        rows = [_job(folder, environment, number) for number in range(repeats + 1)][1:]
        rows.append(_sweep(folder, {**environment, "RAY_ADDRESS": "127.0.0.1:26479"}, trials))
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)
    figures: dict[str, Any] = {}
    for name in ("submit_to_first_log_seconds", "submit_to_exit_seconds"):
        figures[name] = statistics.median(row[name] for row in rows if name in row)
    figures |= {name: rows[-1][name] for name in ("trials_per_hour", "trials_at_once")}
    figures["load_average"] = os.getloadavg()[1]
    print(results.write("bench/results/submit", figures, rows))


def _head(folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2", "--port=26479",
        "--dashboard-port=28265", "--dashboard-host=127.0.0.1", "--dashboard-agent-listen-port=28266",
        f"--temp-dir={folder}/ray",
        "--node-ip-address=127.0.0.1", "--object-store-memory=300000000",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("w") as sink:
        head = subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT, text=True)
    while "Ray runtime started" not in log.read_text():
        if head.poll() is not None:
            raise RuntimeError(log.read_text())
        time.sleep(0.2)
    time.sleep(5)  # the dashboard comes last
    return head


def _job(folder: Path, environment: dict[str, str], number: int) -> dict[str, Any]:
    """A row of one submission."""
    start, first = time.monotonic(), 0.0
    command = [sys.executable, "-m", "raylm.cli", "submit", "explore", SUMS, ENGINE, "search.rounds=1"]
    command += [f"out={folder}/explore-{number}", "--address", DASHBOARD]
    errors, said = folder / "errors", []
    with (
        errors.open("w") as sink,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=sink, text=True) as job,
    ):
        assert job.stdout is not None
        for line in job.stdout:
            first = first or (time.monotonic() - start if line.strip() else 0.0)
            said.append(line)
    if job.returncode:
        raise RuntimeError(f"the job ended with {job.returncode}: {''.join(said[-20:])}{errors.read_text()}")
    return {"repeat": number, "submit_to_first_log_seconds": first, "submit_to_exit_seconds": time.monotonic() - start}


def _sweep(folder: Path, environment: dict[str, str], trials: int) -> dict[str, Any]:
    """A row of one sweep, its start included."""
    texts, start = folder / "texts.jsonl", time.monotonic()
    rows = [
        {"id": f"{word}-{n}", "text": f"{asked} {word} number {n}", "label": label}
        for label, words, asked in (("where", PLACES, "where is the"), ("what", BEASTS, "what eats the"))
        for word in words
        for n in range(3)
    ]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "base": {"train": str(texts), "freeze": True, "epochs": 4, "batch_size": 4, "dev_share": 0.25},
        "space": {"head_lr": {"loguniform": [1e-4, 0.1]}}, "objectives": ["dev_nll"], "search": {"trials": trials},
        "out": f"{folder}/sweep",
    }  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "jobs.sweep", "train-classifier", str(folder / "sweep.json")]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    seconds = time.monotonic() - start
    timing = json.loads((folder / "sweep" / "timing.json").read_text())
    return {"trials": trials, "seconds": seconds, "trials_per_hour": 3600 * trials / seconds,
            "trials_at_once": timing["at_once"]}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="submissions that are counted")
    parser.add_argument("--trials", type=int, default=6, help="of the sweep")
    options = parser.parse_args()
    main(options.repeats, options.trials)
