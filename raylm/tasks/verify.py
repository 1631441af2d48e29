"""Is this response right? Checks that may hang or crash run in processes that are killed and replaced.

A verdict is `correct`, `wrong`, or `unverifiable`: the check itself failed. Failing checks cost one verdict each.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from raylm.errors import UserError
from raylm.records import Problem, Verdict
from raylm.tasks.answers import extract_answer, parse_number
from raylm.tasks.config import VerifierConfig

_START_TIMEOUT = 120.0  # seconds for a check's libraries to be imported on a busy machine
_REMEMBERED = 65536


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check said of one response."""

    answer: str
    """The extracted answer."""
    verdict: Verdict
    reason: str = ""
    """Why a verdict is `unverifiable`."""


def check_number(answer: str, problem: Problem) -> bool:
    """Equal as numbers. The gold may carry a worked solution before `####`."""
    gold = parse_number(problem.answer.rpartition("####")[2])
    if gold is None:
        raise UserError(
            f"problem {problem.id}: its answer {problem.answer!r} is no number; choose checker math or exact"
        )
    return parse_number(answer) == gold


def check_exact(answer: str, problem: Problem) -> bool:
    """Equal as text, case and spacing aside."""
    return _plain(answer) == _plain(problem.answer)


def check_math(answer: str, problem: Problem) -> bool:
    """Equal as mathematics, by math-verify. May hang: run it in a process."""
    from math_verify import parse, verify

    # Its own time limits need the main thread's SIGALRM; the pool kills the process instead.
    gold = parse(f"${problem.answer.rpartition('####')[2].strip()}$", parsing_timeout=None)
    return bool(verify(gold, parse(f"${answer}$", parsing_timeout=None), timeout_seconds=None))


def check_task(answer: str, problem: Problem) -> bool:
    """Full score by the reasoning-gym task that made the problem."""
    import reasoning_gym

    stored = json.loads(problem.metadata_json)
    return bool(reasoning_gym.get_score_answer_fn(stored["task"])(answer, stored["entry"]) == 1.0)


CHECKERS: dict[str, Callable[[str, Problem], bool]] = {
    "number": check_number,
    "exact": check_exact,
    "math": check_math,
    "task": check_task,
}
_BOUNDED = ("number", "exact")
"""Checks that cannot hang; they run in the caller's process."""


def shortcut(answer: str, problem: Problem) -> bool | None:
    """The verdict where it is plain without the full check, None where it is not."""
    if not answer:
        return False
    if _plain(answer) == _plain(problem.answer):
        return True
    if problem.checker == "math":
        numbers = parse_number(answer), parse_number(problem.answer.rpartition("####")[2])
        if all(number is not None for number in numbers) and _is_plain(answer) and _is_plain(problem.answer):
            return numbers[0] == numbers[1]
    return None


class VerifierPool:
    """Checks responses; risky checks go to `config.workers` processes."""

    def __init__(self, config: VerifierConfig) -> None:
        self.config = config
        self._idle: list[_Process] = [_Process() for _ in range(config.workers)]
        self._free = asyncio.Semaphore(config.workers)
        self._memory: collections.OrderedDict[tuple[str, str, str], tuple[Verdict, str]] = collections.OrderedDict()
        self._closed = False

    async def verify(self, problem: Problem, response: str) -> Verification:
        """Extract the answer of a response and check it.

        Raises:
            UserError: the problem's checker is unknown, or its gold answer does not fit the checker.
        """
        if problem.checker not in CHECKERS:
            raise UserError(f"problem {problem.id}: unknown checker {problem.checker!r}; known: {', '.join(CHECKERS)}")
        answer = extract_answer(response)
        if problem.checker in _BOUNDED:
            right: bool | None = bool(answer) and CHECKERS[problem.checker](answer, problem)
        else:
            right = shortcut(answer, problem)
        if right is not None:
            return Verification(answer, "correct" if right else "wrong")
        key = (problem.id, problem.answer, answer)
        if key not in self._memory:
            self._memory[key] = await self._in_process(problem, answer)
            if len(self._memory) > _REMEMBERED:
                self._memory.popitem(last=False)
        return Verification(answer, *self._memory[key])

    def close(self) -> None:
        """End the processes."""
        self._closed = True
        for process in self._idle:
            process.kill()

    async def _in_process(self, problem: Problem, answer: str) -> tuple[Verdict, str]:
        async with self._free:
            process = self._idle.pop()
            try:
                return await process.check(problem, answer, self.config.timeout)
            finally:
                self._idle.append(process)
                if self._closed:
                    process.kill()


class _Process:
    """One child that checks answers, started when needed and replaced after every failure."""

    def __init__(self) -> None:
        self.child: asyncio.subprocess.Process | None = None
        self.loaded: set[str] = set()

    async def check(self, problem: Problem, answer: str, timeout: float) -> tuple[Verdict, str]:
        done = False
        try:
            if problem.checker not in self.loaded:
                await asyncio.wait_for(self._ask({"load": problem.checker}), _START_TIMEOUT)
                self.loaded.add(problem.checker)
            reply = await asyncio.wait_for(self._ask({"problem": asdict(problem), "answer": answer}), timeout)
            done = True
        except asyncio.TimeoutError:
            return "unverifiable", f"the check took longer than {timeout} s"
        except (ConnectionError, EOFError):
            code = await self.child.wait() if self.child else None
            return "unverifiable", f"the check's process died (exit code {code})"
        finally:
            if not done:  # also when the awaiting task was cancelled: the child is in the middle of something
                self.kill()
        return reply["verdict"], reply["reason"]

    def kill(self) -> None:
        """End the child; the next check starts another."""
        if self.child is not None and self.child.returncode is None:
            self.child.kill()
        self.child, self.loaded = None, set()

    async def _ask(self, message: dict[str, Any]) -> Any:
        if self.child is None:
            pipe = asyncio.subprocess.PIPE
            self.child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "raylm.tasks.checker",
                stdin=pipe,
                stdout=pipe,
                stderr=asyncio.subprocess.DEVNULL,
                limit=1 << 24,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(json.dumps(message).encode() + b"\n")
        await self.child.stdin.drain()
        line = await self.child.stdout.readline()
        if not line:
            raise EOFError
        return json.loads(line)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _is_plain(text: str) -> bool:
    """Whether a text is a number and nothing else that mathematics could read differently."""
    return all(sign in "0123456789.,-$% " for sign in text.rpartition("####")[2])
