#!/usr/bin/env python3
"""Install raylm beside its checkout and run it, from a machine with Python, pip and a C++ compiler only.

    python3 jobs/start.py quickstart [key=value ...]   the whole loop on a small model, on two cores
    python3 jobs/start.py test [pytest arguments]      ruff, mypy and every test
    python3 jobs/start.py run VERB [arguments]         any verb of the command line
    python3 jobs/start.py setup                        install and stop

Options stand before the verb. A stamp in the environment names what each step installed: a later run starts at once,
a changed lock is installed anew, an interrupted installation is done again.
"""

from __future__ import annotations  # so that an old Python gets as far as the message about its version

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "cluster" / "requirements"
UV = "uv==0.13.9"
DISK_GB = 4
TEST_GB = 14
STAMP = "raylm-stamp.json"
PIP = ("python", "-m", "pip", "install", "--no-input")
CHECKS = ("ruff check .", "ruff format --check .", "mypy", "pytest")
REMEDIES = {
    r"No space left|Disk quota": "the disk is full: free some space",
    r"Python\.h|command '?\S*(gcc|g\+\+|cc)'? failed": "a package must be compiled: install g++ and python3-dev",
    r"ensurepip is not available|No module named '?(ensurepip|venv|pip)\b": "install the system's python3-venv package",
    r"NameResolution|nnection|timed out|dns error|CERTIF": "check the network, the proxy, pip's configuration",
    r"No matching distribution found for torch": "name an index that has it: --torch-index URL or RAYLM_TORCH_INDEX",
}


class Stop(Exception):
    """What ends the script, in words for the user."""


def check_machine(venv: Path, version: tuple[int, ...] = sys.version_info[:2]) -> None:
    """Refuse a machine on which the installation would fail half-way."""
    pythons = [name for name in ("python3.11", "python3.12", "python3.10") if shutil.which(name)]
    hint = f"run {pythons[0]} jobs/start.py" if pythons else "install Python 3.11"
    compilers = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and shutil.which(name)]
    free = shutil.disk_usage(venv.parent).free / 1e9
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    for fine, message in (
        ((3, 10) <= version <= (3, 12), f"Python 3.10 to 3.12 is needed, this is {version[0]}.{version[1]}: {hint}"),
        (compilers, "no C++ compiler was found: install one (on Debian: apt-get install g++) or set CXX"),
        (headers, "Python's C headers are missing: install them (on Debian: apt-get install python3-dev)"),
        (free >= DISK_GB, f"{free:.1f} GB of disk are free and {DISK_GB} needed: pass --venv PATH on another disk"),
    ):
        if not fine:
            raise Stop(message)


def key_of(file: Path) -> str:
    """What a step depends on: this Python and this file. Of pyproject.toml only what changes an installation."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".toml":
        text = re.split(r"(?m)^\[tool\.(?!hatch)", text)[0]
    return hashlib.sha256(f"{sys.version} {sys.base_prefix} {text}".encode()).hexdigest()


def final_environment(venv: Path, threads: int) -> dict[str, str]:
    """What raylm runs in: its programs first on PATH, no oversubscribed cores. What the user has set stays."""
    defaults = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "RAY_USAGE_STATS_ENABLED": "0"}
    if not Path("/dev/nvidia0").exists():
        defaults["DS_ACCELERATOR"] = "cpu"
    path = f"{venv / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**defaults, **os.environ, "PATH": path, "VIRTUAL_ENV": str(venv)}


class Installer:
    """One environment and its steps: name, key that the stamp must have, commands."""

    def __init__(self, venv: Path, groups: list[str], torch_index: str | None = None) -> None:
        self.venv, self.log = venv, venv.with_name(f"{venv.name}.log")
        self.lock: IO[str] | None = None
        torch, cpu, project = LOCKS / "torch.txt", LOCKS / "cpu.txt", ROOT / "pyproject.toml"
        python = getattr(sys, "_base_executable", sys.executable)  # not the environment's own, which may be removed
        index = ["--extra-index-url", torch_index] if torch_index else []  # else pip's configuration says which build
        uv = ("uv", "pip", "install", "--reinstall")
        base = key_of(torch) + key_of(cpu)
        self.steps: dict[str, tuple[str, list[tuple[object, ...]]]] = {
            "environment": (base, [(python, "-m", "venv", "--clear", venv), (*PIP, UV)]),
            "torch": (base, [(*PIP, "-c", cpu, "-r", torch, *index)]),
            "packages": (base, [(*uv, "--no-deps", "-r", cpu)]),
        }
        self.base = set(self.steps)
        for lock in (LOCKS / f"{group}.txt" for group in groups):
            self.steps[lock.stem] = (key_of(lock), [(*uv, "--no-deps", "-r", lock)])
        self.steps["raylm"] = (f"{ROOT} {key_of(project)}", [(*PIP, "--no-deps", "--no-build-isolation", "-e", ROOT)])
        model = ("python", "-m", "raylm.llm.models", "smollm2-135m-instruct")
        self.steps["model"] = (os.environ.get("RAYLM_CACHE", ""), [model])

    def stamp(self) -> dict[str, str]:
        """Keys of the steps that were finished."""
        try:
            return json.loads((self.venv / STAMP).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def missing(self) -> list[str]:
        """Names of the steps still to do: all of them when the packages are not those of the lock."""
        done = self.stamp()
        todo = [name for name, (key, _) in self.steps.items() if done.get(name) != key]
        return list(self.steps) if self.base & set(todo) else todo

    def prepare(self) -> None:
        """Do the missing steps. The lock stays held, shared, until this process and what it becomes have ended."""
        self.venv.parent.mkdir(parents=True, exist_ok=True)
        beside = self.venv.with_name(f"{self.venv.name}.lock")
        if self.venv.exists() and not beside.exists():
            raise Stop(f"{self.venv} was not made by this script: remove it, or pass --venv PATH")
        self.lock = lock = beside.open("a")
        self.take(lock, fcntl.LOCK_SH)
        if self.missing():
            fcntl.flock(lock, fcntl.LOCK_UN)  # two that hold it shared would wait for each other
            self.take(lock, fcntl.LOCK_EX)
            todo = self.missing()
            if "environment" in todo:
                check_machine(self.venv)
            for number, name in enumerate(todo, 1):
                print(f"[{number}/{len(todo)}] {name} ...", end="", flush=True)
                start = time.monotonic()
                self.do(name)
                print(f" {time.monotonic() - start:.0f} s", flush=True)
            fcntl.flock(lock, fcntl.LOCK_SH)
        os.set_inheritable(lock.fileno(), True)

    def take(self, lock: IO[str], kind: int) -> None:
        """Take the lock, and say so when that has to wait."""
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another run in {self.venv} ...", flush=True)
            fcntl.flock(lock, kind)

    def do(self, name: str) -> None:
        """Run one step, then stamp it."""
        key, commands = self.steps[name]
        for command in commands:
            try:
                self.call(*command)
            except Stop:
                if command[0] != "uv":
                    raise
                print(" by pip, as uv failed ...", end="", flush=True)  # pip may reach an index that uv cannot
                self.call(*PIP, *command[4:])
        new = (self.venv / STAMP).with_suffix(".new")
        new.write_text(json.dumps({**self.stamp(), name: key}, indent=1), encoding="utf-8")
        new.replace(self.venv / STAMP)

    def call(self, *command: object) -> None:
        """Run a command with its output in the log; when it fails, tell the output's end and the remedy."""
        words = [str(word) for word in command]
        environment = final_environment(self.venv, 1)
        if words[0] == "uv":  # it reads none of pip's configuration
            listed = subprocess.run([self.venv / "bin/pip", "config", "list"], stdout=-1, text=True, check=False).stdout
            config = dict(re.findall(r"(?m)^\S+\.(index-url|cert)='(.*)'$", listed))
            handed = {"UV_DEFAULT_INDEX": config.get("index-url", ""), "SSL_CERT_FILE": config.get("cert", "")}
            environment = {**{name: value for name, value in handed.items() if value}, **environment}
        held = [self.lock.fileno()] if self.lock else []  # a child that outlives this script keeps the lock
        with self.log.open("wb+") as log:
            words[0] = shutil.which(words[0], path=environment["PATH"]) or words[0]
            code = subprocess.call(words, stdout=log, stderr=log, env=environment, cwd=ROOT, pass_fds=held)
            log.seek(0)
            output = log.read().decode(errors="replace").strip()
        if code:
            remedy = next((text for pattern, text in REMEDIES.items() if re.search(pattern, output)), "see the log")
            tail = "\n    ".join(line[:200] for line in output.splitlines()[-8:])
            raise Stop(f"{' '.join(words[:4])} ... failed:\n    {tail}\n  {remedy} (log: {self.log})")


def run_checks(venv: Path, arguments: list[str]) -> int:
    """Every check, also after one has failed, pytest last; all tests are shared by two processes where there is room.

    The second begins at once and is shown at the end. Each takes the test file that is next and nobody's.
    """
    program, environment = venv / "bin", final_environment(venv, 1)
    codes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="raylm-tests-") as folder, contextlib.ExitStack() as stack:
        beside, output = None, stack.enter_context(Path(folder, "output").open("w+b"))
        if not arguments and has_room_for_two():
            arguments = [f"--share={folder}/files"]
            command = [str(program / "pytest"), *arguments]
            beside = stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
            )
        for check in CHECKS:
            print(f"== {check}", flush=True)
            name, *rest = check.split()
            line = [str(program / name), *rest, *(arguments if check == "pytest" else [])]
            codes[check] = subprocess.call(line, cwd=ROOT, env=environment)
        if beside is not None:
            codes["pytest"] = beside.wait() or codes["pytest"]
            output.seek(0)
            print("== pytest, the other half", flush=True)
            print(output.read().decode(errors="replace"), flush=True)
    print("checks:", ", ".join(f"{name} {'FAILED' if code else 'ok'}" for name, code in codes.items()), flush=True)
    return 1 if any(codes.values()) else 0


def has_room_for_two() -> bool:
    """Whether two processes with Ray and an engine each can run side by side."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (os.cpu_count() or 1) > 1 and memory > TEST_GB * 1e9


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", default=os.environ.get("RAYLM_VENV") or ROOT / ".venv", metavar="PATH")
    parser.add_argument("--torch-index", default=os.environ.get("RAYLM_TORCH_INDEX"), metavar="URL")
    parser.add_argument("--with", dest="groups", action="append", choices=("dev", "bench"), default=[])
    parser.add_argument("verb", choices=("quickstart", "test", "run", "setup"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args(argv)
    venv = Path(os.path.abspath(given.venv))
    groups = sorted({*given.groups, *(["dev"] if given.verb == "test" else [])})
    try:
        installer = Installer(venv, groups, given.torch_index)
        installer.prepare()
    except Stop as stop:
        print(f"\nstart.py: {stop}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstart.py: interrupted; run it again to go on", file=sys.stderr)
        return 130
    if given.verb in ("setup", "test"):
        return run_checks(venv, given.arguments) if given.verb == "test" else 0
    first = ["pipeline", "jobs/configs/quickstart.yaml"] if given.verb == "quickstart" else []
    command = [str(venv / "bin" / "raylm"), *first, *given.arguments]
    os.chdir(ROOT if given.verb == "quickstart" else Path.cwd())
    os.execve(command[0], command, final_environment(venv, max(1, len(os.sched_getaffinity(0)) // 2)))


if __name__ == "__main__":
    sys.exit(main())
