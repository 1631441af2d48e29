"""Several nodes on this machine: work on all of them, one lost in the middle, another one added."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from heads import Nodes

from raylm.storage import Store

ROOT = Path(__file__).parent.parent.parent
SUMS = "problems=[{name: chain_sum, part: train, limit: %d, seed: 1, params: {min_terms: 3, max_terms: 4}}]"
EXPLORE = ("engine={kind: scripted, model: micro, context: 512}", "search.rounds=30", "search.max_tokens=64")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes():
    found = Nodes(cpus=1)
    try:
        yield found
    finally:
        found.close()


def start(nodes, module, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, env=nodes.job_environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_until(condition, job, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def finished(job):
    printed, _ = job.communicate(timeout=500)
    assert job.returncode == 0, printed
    return printed


def workers_of(process, name):
    """Processes of a node whose title holds a name."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if name in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_search_over_two_nodes_survives_the_loss_of_one_and_uses_the_next(nodes, tmp_path):
    compute = "compute={min_workers: 2, max_workers: 2, cpus: 1, in_flight: 4}"
    lost = nodes.add()
    out = tmp_path / "two"
    job = start(nodes, "jobs.explore", SUMS % 60, *EXPLORE, compute, f"out={out}")
    wait_until(lambda: len(list(out.glob("parts/*.parquet"))) >= 3 and workers_of(lost, "MapBatches"), job)
    nodes.kill(lost)
    done = len(list(out.glob("parts/*.parquet")))
    added = nodes.add()
    wait_until(lambda: workers_of(added, "MapBatches") or (out / "manifest.json").exists(), job)
    printed = finished(job)
    assert "explore: 60/60 trees" in printed
    assert done < 60
    nodes.kill(added)
    alone = tmp_path / "alone"
    one = "compute={min_workers: 1, max_workers: 1, cpus: 1, in_flight: 8}"
    finished(start(nodes, "jobs.explore", SUMS % 60, *EXPLORE, one, f"out={alone}"))
    assert Store(str(out)).manifest().outputs == Store(str(alone)).manifest().outputs


def test_training_over_two_nodes_goes_on_when_one_is_lost_and_another_added(nodes, tmp_path):
    chains = tmp_path / "chains.jsonl"
    rows = [
        {
            "id": str(n),
            "messages": [{"role": "user", "content": f"{n} + 1"}, {"role": "assistant", "content": f"{n + 1}"}],
        }
        for n in range(24)
    ]
    chains.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, steps = tmp_path / "out", tmp_path / "steps"
    lost = nodes.add()
    job = start(
        nodes, "jobs.finetune", "model=micro", "batch_size=4", "micro_batch=2", "epochs=60", "lr=0.003", "workers=2",
        "checkpoint_every=4", f"chains={chains}", f"out={out}", f"step_log={steps}", "isolation.refresh_every=5",
    )  # fmt: skip
    wait_until(lambda: steps.exists() and len(steps.read_text().splitlines()) >= 10, job)
    assert workers_of(lost, "RayTrainWorker")
    nodes.kill(lost)
    nodes.add()
    finished(job)
    logged = [json.loads(line)["step"] for line in steps.read_text().splitlines()]
    assert sorted(set(logged)) == list(range(1, 361))
    assert 0 < len(logged) - 360 <= 8  # what was begun after the last checkpoint, and one interval more at most
    assert pq.read_table(out / "data" / "steps.parquet").column("step").to_pylist() == list(range(1, 361))
