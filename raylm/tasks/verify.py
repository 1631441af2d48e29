"""Checking responses where a check may hang, crash or eat memory: in processes that are killed and replaced.

A verdict is `correct`, `wrong`, or `unverifiable`: the check itself failed. A failing check costs one verdict and
touches no other. The processes die with their parent, however it ends.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from multiprocessing.connection import Connection
from typing import Any

from raylm.errors import UserError
from raylm.records import Problem, Verdict
from raylm.tasks.answers import extract_answer
from raylm.tasks.checkers import CHECKERS, check, check_exact, check_number, look, resolve
from raylm.tasks.config import VerifierConfig

__all__ = ["CHECKERS", "Verification", "VerifierPool", "check", "try_checker"]

_START_TIMEOUT = 120.0
"""Seconds for a process to start, and for a check's libraries to be imported, on a busy machine."""
_REMEMBERED = 16384
"""Verdicts that a pool keeps."""
_PROBLEM_FIELDS = tuple(field.name for field in dataclasses.fields(Problem))

Outcome = tuple[Verdict, str]
"""A verdict, and the reason of an `unverifiable` one."""
_Job = tuple["concurrent.futures.Future[Outcome]", str, Problem, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Verification:
    """What a check said of one response."""

    answer: str
    """The extracted answer, empty when there was none."""
    verdict: Verdict
    reason: str = ""
    """Why a verdict is `unverifiable`."""


class VerifierPool:
    """Checks responses from any event loop or thread; risky checks go to `config.workers` processes.

    Checks that cannot hang (numbers, text, and mathematics where a look is enough) run in the caller's process. The
    others start a process when the first one comes.
    """

    def __init__(self, config: VerifierConfig) -> None:
        self.config = config
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._processes = [CheckProcess(config) for _ in range(config.workers)]
        self._threads: list[threading.Thread] = []
        self._memory: collections.OrderedDict[bytes, concurrent.futures.Future[Outcome]] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._end = weakref.finalize(self, _end, self._jobs, self._processes)

    async def verify(self, problem: Problem, response: str) -> Verification:
        """Extract the answer of a response and check it.

        Raises:
            UserError: the checker is unknown, cannot be imported, or does not fit the problem.
            RuntimeError: the pool is closed, or a process could not be started.
        """
        name, answer = resolve(problem), extract_answer(response)
        right = _in_caller(name, answer, problem)
        if right is not None:
            return Verification(answer, "correct" if right else "wrong")
        future = self._submit(name, problem, response if ":" in name else answer)
        # Shielded: who cancels one request must not take the verdict from others that wait for the same.
        return Verification(answer, *await asyncio.shield(asyncio.wrap_future(future)))

    def close(self) -> None:
        """End the processes. Checks that still wait raise RuntimeError."""
        self._end()
        for thread in self._threads:
            thread.join()

    def _submit(self, name: str, problem: Problem, text: str) -> concurrent.futures.Future[Outcome]:
        key = _key(name, problem, text)
        with self._lock:
            if not self._end.alive:
                raise RuntimeError("the verifier pool is closed")
            future = self._memory.get(key)
            if future is not None and not (future.done() and future.exception()):
                self._memory.move_to_end(key)
                return future
            self._memory[key] = future = concurrent.futures.Future()
            if len(self._memory) > _REMEMBERED:
                self._memory.popitem(last=False)
            if not self._threads:
                self._threads = [
                    threading.Thread(target=_serve, args=(self._jobs, process), daemon=True, name="raylm-verifier")
                    for process in self._processes
                ]
                for thread in self._threads:
                    thread.start()
            self._jobs.put((future, name, problem, text))
        return future


class CheckProcess:
    """One child that checks answers, started when needed and replaced after every failure; for one thread at a time."""

    def __init__(self, config: VerifierConfig) -> None:
        self.config = config
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._loaded: set[str] = set()
        self._closed = False
        self._lock = threading.Lock()

    def load(self, name: str) -> None:
        """Start the process if need be, and import what a checker needs.

        Raises:
            UserError: it cannot be imported.
            RuntimeError: the process did not start.
        """
        if self._pipe is None:
            self._start()
        if name in self._loaded:
            return
        try:
            reply = self._ask({"load": name}, _START_TIMEOUT)
        except (EOFError, OSError, TimeoutError) as error:
            how = f"took more than {_START_TIMEOUT:.0f} s" if isinstance(error, TimeoutError) else self._death()
            self.kill()
            self._refuse_closed()
            raise UserError(f"checker {name} cannot be loaded: the import {how}") from None
        if "error" in reply:
            raise UserError(reply["error"])
        if "unverifiable" in reply:
            raise UserError(f"checker {name} cannot be loaded: {reply['unverifiable']}")
        self._loaded.add(name)

    def check(self, name: str, problem: Problem, text: str) -> Outcome:
        """Check one text with a resolved checker.

        Raises:
            UserError: the checker cannot be loaded, or does not fit the problem.
            RuntimeError: the process did not start, or was closed.
        """
        self.load(name)
        fields = {field: getattr(problem, field) for field in _PROBLEM_FIELDS}
        try:
            reply = self._ask({"checker": name, "text": text, "problem": fields}, self.config.timeout)
        except TimeoutError:
            self.kill()
            return "unverifiable", f"the check took longer than {self.config.timeout:g} s"
        except (EOFError, OSError):
            death = self._death()
            self.kill()
            self._refuse_closed()
            return "unverifiable", f"the check {death}"
        if reply.get("spent"):
            self.kill()
        if "error" in reply:
            raise UserError(reply["error"])
        if "unverifiable" in reply:
            return "unverifiable", reply["unverifiable"]
        return ("correct" if reply["right"] else "wrong"), ""

    def close(self) -> None:
        """End the process for good; a check in progress raises RuntimeError. Safe from any thread."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                _kill_group(self._child)

    def kill(self) -> None:
        """End the process; the next check starts another."""
        with self._lock:
            if self._child is not None:
                _kill_group(self._child)
            if self._pipe is not None:
                self._pipe.close()
            self._child, self._pipe, self._loaded = None, None, set()

    def _start(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        arguments = (theirs.fileno(), os.getpid(), int(self.config.memory * 2**30))
        path = os.pathsep.join(filter(None, sys.path))  # Ray workers find raylm and the user's modules there
        with tempfile.TemporaryFile() as errors, theirs:
            with self._lock:
                self._refuse_closed()
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "raylm.tasks.child", *map(str, arguments)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # so that what a check starts is killed with it
                    env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
                )
                self._pipe = ours
            theirs.close()
            try:
                self._receive(_START_TIMEOUT)
            except (EOFError, OSError, TimeoutError):
                self.kill()
                self._refuse_closed()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip()[-2000:]
                raise RuntimeError(f"a verifier process did not start: {said or 'it said nothing'}") from None

    def _ask(self, message: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert self._pipe is not None
        self._pipe.send_bytes(json.dumps(message).encode())
        return self._receive(timeout)

    def _receive(self, timeout: float) -> dict[str, Any]:
        assert self._pipe is not None
        if not self._pipe.poll(timeout):
            raise TimeoutError
        return dict(json.loads(self._pipe.recv_bytes()))

    def _death(self) -> str:
        assert self._child is not None
        try:
            code = self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"died by {signal.Signals(-code).name}" if code < 0 else f"ended its process with exit code {code}"

    def _refuse_closed(self) -> None:
        if self._closed:
            raise RuntimeError("the verifier pool is closed")


def try_checker(problem: Problem) -> None:
    """Import the checker of a problem in a process, before expensive work relies on it.

    Raises:
        UserError: it cannot be imported.
    """
    process = CheckProcess(VerifierConfig())
    try:
        process.load(resolve(problem))
    finally:
        process.kill()


def _in_caller(name: str, answer: str, problem: Problem) -> bool | None:
    """The result of a check that is bounded, None where a process is needed."""
    if ":" in name:
        return None
    if not answer:
        return False
    if name == "number":
        return check_number(answer, problem)
    if name == "exact":
        return check_exact(answer, problem)
    return look(answer, problem) if name == "math" else None


def _key(name: str, problem: Problem, text: str) -> bytes:
    """Equal for checks that must agree: a task's or the user's own checker may look at the whole problem."""
    parts = [name, problem.answer, text]
    if name != "math":
        parts += [problem.id, problem.question, problem.metadata_json]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()


def _serve(jobs: queue.SimpleQueue[_Job | None], process: CheckProcess) -> None:
    """Run jobs in one process until there is None. The thread holds no pool, so that a forgotten pool can end."""
    while (job := jobs.get()) is not None:
        future, name, problem, text = job
        future.set_running_or_notify_cancel()
        try:
            future.set_result(process.check(name, problem, text))
        except BaseException as error:  # who waits for the verdict gets it
            future.set_exception(error)
        del job, future
    process.kill()


def _end(jobs: queue.SimpleQueue[_Job | None], processes: list[CheckProcess]) -> None:
    for process in processes:
        process.close()
    for _ in processes:
        jobs.put(None)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
