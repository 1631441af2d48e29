"""Jobs on a head of its own with token authentication: followed, failed, stopped, and never run twice at once."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from heads import Nodes, free_ports

from raylm import submit, telemetry
from raylm.errors import UserError
from raylm.storage import Store
from raylm.submit import Request

ROOT = Path(__file__).parent.parent.parent
ENGINE = "engine={kind: scripted, model: micro, context: 512}"
SUMS = "problems=[{name: chain_sum, part: train, limit: %d, seed: 1, params: {min_terms: 2, max_terms: 3}}]"


@pytest.fixture(scope="module")
def head():
    """A head of two CPUs that asks for a token: (dashboard's address, token file, node)."""
    nodes = Nodes(cpus=2, environment={"RAY_metrics_report_interval_ms": "1000"})
    address = f"http://127.0.0.1:{nodes.dashboard}"
    try:
        deadline = time.monotonic() + 120
        while not _refuses(address):
            assert nodes.head.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.3)
        yield address, str(nodes.token), nodes
    finally:
        nodes.close()


def _refuses(address):
    """Whether the dashboard is up and tells nothing to those without a token."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        pass
    return False


def raylm(*args, token, stdin=subprocess.DEVNULL):
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
    command = [sys.executable, "-m", "raylm.cli", "submit", *args]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_job_is_followed_and_a_second_one_finds_its_work_done(head, tmp_path):
    address, token, _ = head
    out = tmp_path / "explore"
    arguments = ("explore", SUMS % 3, ENGINE, "search.rounds=1", f"out={out}", "--address", address)
    for attempt in range(2):
        printed, said = (job := raylm(*arguments, token=token)).communicate(timeout=300)
        assert job.returncode == 0, printed + said
        assert re.search(r"submitted raysubmit_\w+: python -m jobs\.explore", said)
        if not attempt:
            assert "explore: 3/3 trees" in printed
    assert Store(str(out)).manifest().rows == 3


def test_a_failing_jobs_exit_code_comes_back(head, tmp_path):
    address, token, _ = head
    missing = "problems=[{name: mine, kind: dataset, path: /no/such.jsonl}]"
    job = raylm("explore", missing, ENGINE, f"out={tmp_path}/x", "--address", address, token=token)
    printed, said = job.communicate(timeout=300)
    assert job.returncode == 2, printed + said
    assert "/no/such.jsonl" in printed


def interrupted(arguments, token, answer):
    """Exit code, and standard error, of a submission that is interrupted once its job speaks."""
    ours, theirs = pty.openpty()
    job = raylm(*arguments, token=token, stdin=theirs)
    try:
        while not job.stdout.readline().strip():
            assert job.poll() is None, job.stderr.read()
        time.sleep(1.0)
        job.send_signal(signal.SIGINT)
        time.sleep(1.0)
        os.write(ours, f"{answer}\n".encode())
        _, said = job.communicate(timeout=120)
        return job.returncode, said
    finally:
        os.close(ours)
        os.close(theirs)


def test_interrupted_it_asks_and_stops_what_a_second_submission_only_follows(head, tmp_path):
    address, token, _ = head
    arguments = ("explore", SUMS % 4000, ENGINE, "search.rounds=40", f"out={tmp_path}/long", "--address", address)
    code, said = interrupted(arguments, token, "n")
    assert code == submit.LEFT_RUNNING, said
    assert "submitted" in said
    assert "goes on" in said
    code, said = interrupted(arguments, token, "y")
    assert code == submit.STOPPED, said
    assert "does this already; following it" in said
    assert "submitted" not in said


@pytest.mark.parametrize("token", ["wrong" * 8, ""])
def test_without_the_right_token_nothing_is_told(head, tmp_path, token):
    address, *_ = head
    file = tmp_path / "token"
    file.write_text(token or "x" * 8)
    file.chmod(0o600)
    job = raylm("explore", SUMS % 1, ENGINE, f"out={tmp_path}/x", "--address", address, token=str(file))
    printed, said = job.communicate(timeout=120)
    assert job.returncode == 2, printed + said
    assert "refuses the token" in said
    assert len(said.splitlines()) == 1


def test_where_no_cluster_answers_it_says_so(tmp_path):
    (port,) = free_ports(1)
    request = Request("explore", (SUMS % 1, ENGINE, f"out={tmp_path}/x"), f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match="no Ray dashboard answers there"):
        submit.submit(request)


COUNTS = """
import sys
import ray
from raylm import telemetry

ray.init(log_to_driver=False)

@ray.remote(num_cpus=0)
class Counting:
    def count(self):
        for name, metric in telemetry.METRICS.items():
            (telemetry.count if metric.kind == "counter" else telemetry.gauge)(name, 7)

actor = Counting.remote()
ray.get(actor.count.remote())
print("counted", flush=True)
sys.stdin.readline()
"""


def test_every_metric_comes_out_of_rays_endpoint_under_the_name_that_the_dashboard_asks_for(head):
    *_, nodes = head
    driver = subprocess.Popen(
        [sys.executable, "-c", COUNTS], cwd=ROOT, env=nodes.job_environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert driver.stdout.readline() == "counted\n"
        wanted = {metric.exported for metric in telemetry.METRICS.values()}
        deadline = time.monotonic() + 120
        found = {}
        while not wanted <= found.keys() and time.monotonic() < deadline:
            text = urllib.request.urlopen(f"http://127.0.0.1:{nodes.metrics}/metrics", timeout=10).read().decode()
            found = dict(re.findall(r"^(ray_raylm_\w+)\{[^}]*\} ([\d.]+)$", text, re.MULTILINE))
            time.sleep(0.5)
        assert {name: float(found[name]) for name in wanted} == dict.fromkeys(wanted, 7.0)
    finally:
        driver.communicate("done\n", timeout=60)
