"""A user's own checkers, good and bad, for the tests of the pool."""

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path


def says_yes(response, problem):
    """Right where the whole response, not the extracted answer, says yes."""
    print("a checker may print")
    return "yes" in response


def has_field(response, problem):
    return json.loads(problem.metadata_json)["fields"]["wanted"] in response


def misbehave(response, problem):  # noqa: PLR0912 - one branch a misdeed
    """Does what the response asks for."""
    what, _, detail = response.partition(" ")
    if what == "spin":
        while True:
            pass
    elif what == "hold":  # never gives the interpreter to another thread
        return str(9 ** (10**8)) == "0"
    elif what == "sleep":
        time.sleep(float(detail or 1000))
    elif what == "exit":
        os._exit(3)
    elif what == "quit":
        sys.exit(1)
    elif what == "segfault":
        ctypes.string_at(0)
    elif what == "eat":
        return len(bytearray(64 * 2**30)) == 0
    elif what == "nibble":
        eaten = []
        while True:
            eaten.append(bytearray(2**24))
    elif what == "raise":
        raise LookupError("planned")
    elif what == "recurse":
        return misbehave(response, problem)
    elif what == "score":
        return 0.5
    elif what == "stdin":
        return sys.stdin.read() == ""
    elif what == "close":
        os.closerange(3, 256)
    elif what == "pid":
        Path(detail).write_text(str(os.getpid()))
    elif what == "family":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        Path(detail).write_text(str(child.pid))
        time.sleep(1000)
    return True


not_a_function = 5
