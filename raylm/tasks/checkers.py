"""Is this answer right? The checks themselves, without the processes that make them safe to run."""

from __future__ import annotations

import difflib
import functools
import importlib
import json
import re
from collections.abc import Callable
from typing import Any

from raylm.errors import UserError
from raylm.records import Problem, Verdict
from raylm.tasks.answers import extract_answer, gold_text, normalize_text, parse_number
from raylm.tasks.config import CHECKER_NAMES

_PLAIN_NUMBER = re.compile(r"[-+−]?\s*\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:/\d+)?")
_WORDS = re.compile(r"(?=.*[^\W\d_]{3})[^\W\d_]+(?:[ '’.,-]+[^\W\d_]+)*\.?")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}")


class CannotCheck(Exception):
    """A check that can say nothing of an answer; the verdict is `unverifiable`."""


def check_number(answer: str, problem: Problem) -> bool:
    """Equal as numbers; see `parse_number` for what is ignored.

    Raises:
        UserError: the gold answer is no number.
    """
    gold = parse_number(gold_text(problem.answer))
    if gold is None:
        raise UserError(
            f"problem {problem.id}: its answer {problem.answer!r} is no number; choose checker math or exact"
        )
    return parse_number(answer) == gold


def check_exact(answer: str, problem: Problem) -> bool:
    """Equal as text, case, spacing, quotes and a final full stop aside."""
    return normalize_text(answer) == normalize_text(gold_text(problem.answer))


def check_math(answer: str, problem: Problem) -> bool:
    """Equal as mathematics, by math-verify unless a look is enough. May hang: `VerifierPool` runs it in a process.

    Raises:
        CannotCheck: math-verify cannot read the gold answer.
    """
    looked = look(answer, problem)
    if looked is not None:
        return looked
    from math_verify import parse, verify

    # Its own time limits are signal.alarm, which fails off the main thread; the pool kills the process instead.
    gold, found = (
        parse(f"${_undollared(text)}$", parsing_timeout=None) for text in (gold_text(problem.answer), answer)
    )
    if not gold:
        raise CannotCheck(f"math-verify cannot read the gold answer {problem.answer!r}; choose checker exact")
    return bool(verify(gold, found, timeout_seconds=None))


def check_task(answer: str, problem: Problem) -> bool:
    """Full score, 1.0, by the reasoning-gym task that made the problem, with or without a final full stop.

    Raises:
        UserError: the problem does not carry its task's entry.
    """
    from raylm.tasks.procedural import unpack

    stored = unpack(json.loads(problem.metadata_json))
    if "entry" not in stored:
        raise UserError(f"problem {problem.id} does not come from reasoning-gym; choose checker math, number or exact")
    score = _scorer(stored["task"], json.dumps(stored["params"], sort_keys=True))
    return any(score(text, stored["entry"]) == 1.0 for text in (answer, answer.removesuffix("."), answer + "."))


def check_auto(answer: str, problem: Problem) -> bool:
    """`task` for problems of reasoning-gym, `math` for all others."""
    return CHECKERS[resolve(problem)](answer, problem)


CHECKERS: dict[str, Callable[[str, Problem], bool]] = {
    "auto": check_auto,
    "number": check_number,
    "exact": check_exact,
    "math": check_math,
    "task": check_task,
}
"""The checkers that come with raylm: (extracted answer, problem) to right or wrong."""


def check(problem: Problem, response: str) -> Verdict:
    """The verdict on a response, in this process: nothing stops a check that hangs (see `VerifierPool`).

    Raises:
        UserError: the checker is unknown, cannot be imported, or does not fit the problem.
    """
    name = resolve(problem)
    try:
        right = run(name, subject(name, response), problem)
    except UserError:
        raise
    except Exception:  # whatever a check raises, it said nothing about the answer
        return "unverifiable"
    return "correct" if right else "wrong"


def run(name: str, text: str, problem: Problem) -> bool:
    """Run one resolved checker on what `subject` gives it.

    Raises:
        UserError: see `check`. Any other exception is the check's own.
    """
    if ":" not in name:
        return bool(text) and CHECKERS[name](text, problem)
    right = import_checker(name)(text, problem)
    if type(right).__name__ not in ("bool", "bool_"):  # numpy's is named bool_ or bool
        raise UserError(f"checker {name} returned {right!r}; it must return True or False")
    return bool(right)


def resolve(problem: Problem) -> str:
    """The checker of a problem by name, `auto` decided.

    Raises:
        UserError: there is no such checker.
    """
    if problem.checker == "auto":
        return "task" if '"entry"' in problem.metadata_json else "math"
    if ":" not in problem.checker and problem.checker not in CHECKERS:
        close = difflib.get_close_matches(problem.checker, CHECKER_NAMES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(CHECKER_NAMES)}"
        raise UserError(f"problem {problem.id}: no checker {problem.checker!r}; {hint}")
    return problem.checker


def subject(name: str, response: str) -> str:
    """What a checker is given: the extracted answer, or the whole response where it is the user's own."""
    return response if ":" in name else extract_answer(response)


def look(answer: str, problem: Problem) -> bool | None:
    """Whether an answer is mathematically right where this is plain to see, None where it is not.

    Equal texts are; plain numbers and words are compared as such (math-verify takes a word for a product of its
    letters, so that "east" would equal "seat").
    """
    gold = gold_text(problem.answer)
    if answer.split() == gold.split():
        return True
    if _PLAIN_NUMBER.fullmatch(answer.strip()) and _PLAIN_NUMBER.fullmatch(gold):
        numbers = parse_number(answer), parse_number(gold)
        return None if None in numbers else numbers[0] == numbers[1]
    words = [_TEXT_COMMAND.sub(r"\1", text).strip() for text in (answer, gold)]
    if _WORDS.fullmatch(words[1]):
        return normalize_text(words[0]) == normalize_text(words[1])
    return None


def import_checker(name: str) -> Callable[[str, Problem], Any]:
    """The user's own checker `package.module:function`.

    Raises:
        UserError: the module cannot be imported or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise UserError(
            f"checker {name}: cannot import {module_name} ({type(error).__name__}: {error}); "
            "put its folder on PYTHONPATH"
        ) from error
    function = vars(module).get(function_name)
    if not callable(function):
        close = difflib.get_close_matches(function_name, [key for key, item in vars(module).items() if callable(item)])
        raise UserError(
            f"checker {name}: {module_name} has no function {function_name}"
            + (f"; did you mean {close[0]}?" if close else "")
        )
    return function


@functools.lru_cache(maxsize=64)
def _scorer(task: str, params_json: str) -> Callable[[str, dict[str, Any]], float]:
    import reasoning_gym

    return reasoning_gym.create_dataset(task, **json.loads(params_json)).score_answer


def _undollared(text: str) -> str:
    return text.replace("\\$", "").replace("$", "").strip()
