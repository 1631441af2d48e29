"""The child process of a verifier pool: reads problems and answers as JSON lines, writes verdicts.

It ends when its parent does: at the end of its input, or, while a check hangs, when the parent's id changes.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from typing import Any

from raylm.records import Problem
from raylm.tasks.verify import CHECKERS

MEMORY = 4 * 2**30


def main() -> None:
    """Serve until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a check prints must not look like a verdict
    for line in sys.stdin:
        replies.write(json.dumps(_answer(json.loads(line))) + "\n")
        replies.flush()


def _answer(message: dict[str, Any]) -> dict[str, str]:
    if "load" in message:
        {"math": lambda: __import__("math_verify"), "task": lambda: __import__("reasoning_gym")}[message["load"]]()
        return {}
    problem = Problem(**message["problem"])
    try:
        right = CHECKERS[problem.checker](message["answer"], problem)
    except MemoryError:
        return {"verdict": "unverifiable", "reason": f"the check wanted more than {MEMORY >> 30} GiB of memory"}
    except Exception as error:  # whatever a scorer raises, it said nothing about the answer
        return {"verdict": "unverifiable", "reason": f"{type(error).__name__}: {error}"}
    return {"verdict": "correct" if right else "wrong", "reason": ""}


def _die_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
