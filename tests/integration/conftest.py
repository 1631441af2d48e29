"""Real Ray on two CPUs, started once for all tests that share a process, and jobs that run on it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray of two CPUs; the whole session uses one, since each start takes seconds."""
    import ray

    for left in (3, 2, 1, 0):
        try:
            ray.init(
                address="local",
                num_cpus=2,
                resources={"quiet_corner": 1, "accelerator_type:H100": 1},  # as a node has that differs from others
                include_dashboard=False,
                logging_level="warning",
                object_store_memory=512 * 2**20,
                ignore_reinit_error=True,
            )
            break
        except Exception as error:  # a node gives its agents 15 seconds to start, and a busy machine may need more
            if not left or "timed out during startup" not in str(error):
                raise
    yield
    ray.shutdown()


class Job:
    """`python -m MODULE ...` in a process of its own, as users start it, on a cluster that outlives it."""

    def __init__(self, module, arguments, cwd, environment):
        command = [sys.executable, "-m", module, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(self):
        """What it printed, once it has ended well."""
        printed, _ = self.process.communicate(timeout=500)
        assert self.process.returncode == 0, printed
        return printed

    def kill_when(self, reached):
        """SIGKILL it as soon as `reached()` holds; it must not have ended before."""
        deadline = time.monotonic() + 400
        while not reached():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def kill_at(self, file, lines):
        """SIGKILL it as soon as a file that it appends to has so many lines."""
        self.kill_when(lambda: file.exists() and len(file.read_text().splitlines()) >= lines)


@pytest.fixture(scope="session")
def start_job(ray_cluster):
    """The starter of jobs on the session's cluster: start_job("jobs.finetune", "model=micro", ...)."""
    import ray

    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}

    def start(module, *arguments, cwd=ROOT):
        return Job(module, arguments, cwd, environment)

    return start


@pytest.fixture
def run_verb(ray_cluster, capfd):
    """Runs a verb as the command line does, in this process: (exit code, what it printed)."""
    from raylm import cli

    def run(verb, *arguments):
        code = cli.run_verb(verb, [str(argument) for argument in arguments])
        return code, "".join(capfd.readouterr())

    return run
