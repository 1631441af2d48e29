"""Ray nodes of their own, as `ray start` starts them: ports, folder, and processes that are ours to kill."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count):
    """Ports that nobody listens on now."""
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


class Nodes:
    """A head and the nodes that were added to it.

    A raylet gives its agents 15 seconds to write down their ports, which a busy machine does not keep. Ours are given
    beforehand, so they are written for them; where that is not enough the node is started again.
    """

    def __init__(self, cpus=1, options=(), environment=None):
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: sockets lie below it
        self.token = self.folder / "token"
        self.token.write_text("0123456789abcdef" * 4)
        self.token.chmod(0o600)
        self.environment = {
            **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token), "DS_ACCELERATOR": "cpu",
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "300000", **(environment or {}),
        }  # fmt: skip
        self.environment.pop("RAY_ADDRESS", None)
        self.added = []
        self.options = options
        self.port, self.dashboard = free_ports(2)
        self.metrics = 0
        self.start_head(cpus)

    @property
    def address(self):
        """Of the cluster, for drivers."""
        return f"127.0.0.1:{self.port}"

    @property
    def job_environment(self):
        """For a driver's process."""
        return {**self.environment, "RAY_ADDRESS": self.address}

    def start_head(self, cpus):
        """Start the head, on the ports of the one before where there was one."""
        command = [
            RAY, "start", "--head", "--block", f"--num-cpus={cpus}", f"--port={self.port}",
            f"--dashboard-port={self.dashboard}", "--dashboard-host=127.0.0.1", f"--temp-dir={self.folder}/ray",
            *self.options,
        ]  # fmt: skip
        self.head = self._started(command)

    def add(self, cpus=1):
        """Add a node; returns its process."""
        process = self._started([RAY, "start", f"--address={self.address}", "--block", f"--num-cpus={cpus}"])
        self.added.append(process)
        return process

    def kill(self, process):
        """Take a node away at once, with all that runs on it."""
        family = [process, *psutil.Process(process.pid).children(recursive=True)]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)
        process.wait()

    def close(self):
        """End everything."""
        for process in (*self.added, self.head):
            if process.poll() is None:
                self.kill(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _started(self, command):
        for _ in range(3):
            names = ("metrics_agent", "dashboard_agent_listen", "metrics_export", "runtime_env_agent")
            agents = dict(zip(names, free_ports(4), strict=True))
            self.metrics = agents["metrics_export"]
            ports = [
                f"--dashboard-agent-grpc-port={agents['metrics_agent']}",
                f"--dashboard-agent-listen-port={agents['dashboard_agent_listen']}",
                f"--metrics-export-port={self.metrics}", f"--runtime-env-agent-port={agents['runtime_env_agent']}",
                "--node-ip-address=127.0.0.1", "--object-store-memory=200000000",
            ]  # fmt: skip
            log = self.folder / f"log-{time.monotonic_ns()}"
            with log.open("w") as sink:
                process = subprocess.Popen(
                    [*command, *ports], env=self.environment, stdout=sink, stderr=subprocess.STDOUT
                )
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                if "Ray runtime started" in log.read_text():
                    return process
                self._write_ports(process, agents)
                time.sleep(0.2)
            if process.poll() is None:
                self.kill(process)
        raise AssertionError(log.read_text())

    def _write_ports(self, process, agents):
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                words = dict(word.split("=", 1) for word in child.cmdline() if word.startswith("--") and "=" in word)
                if child.name() == "raylet" and "--node_id" in words:
                    for name, port in agents.items():
                        file = Path(words["--session_dir"], f"{name}_port_{words['--node_id']}")
                        if not file.exists():
                            file.write_text(str(port))
