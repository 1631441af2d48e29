"""The child process of a verifier: takes checks over a pipe, answers each, and ends when its parent does."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from raylm.errors import UserError
from raylm.records import Problem
from raylm.tasks import checkers

_PR_SET_PDEATHSIG = 1
_LIBRARIES = {"math": "math_verify", "task": "reasoning_gym"}


def main() -> None:
    """Serve until the pipe closes. Arguments: the pipe's descriptor, the parent's process id, bytes of memory."""
    descriptor, parent, memory = (int(argument) for argument in sys.argv[1:4])
    _die_with(parent)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.set_inheritable(descriptor, False)
    pipe = Connection(descriptor)
    pipe.send_bytes(b"{}")
    silence = os.open(os.devnull, os.O_WRONLY)  # from here on a check may print what it likes
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        while True:
            pipe.send_bytes(json.dumps(_reply(json.loads(pipe.recv_bytes()))).encode())
    except (EOFError, ConnectionError):
        return


def _reply(message: dict[str, Any]) -> dict[str, Any]:
    try:
        if "load" in message:
            _load(message["load"])
            return {}
        right = checkers.run(message["checker"], message["text"], Problem(**message["problem"]))
    except UserError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"unverifiable": "the check ran out of memory", "spent": True}
    except (Exception, SystemExit) as error:  # whatever a check raises, it said nothing about the answer
        return {"unverifiable": f"{type(error).__name__}: {error}"[:500]}
    return {"right": right}


def _load(name: str) -> None:
    if ":" in name:
        checkers.import_checker(name)
        return
    library = _LIBRARIES[name]
    try:
        __import__(library)
    except ImportError as error:
        raise UserError(f"checker {name} needs {library.replace('_', '-')}: {error} (pip install it)") from None


def _die_with(parent: int) -> None:
    """End with the parent, even inside a check that holds the interpreter and never looks at the pipe."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
