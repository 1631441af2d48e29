"""A check that hangs, crashes or eats memory costs one verdict, and no process outlives its pool."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.config import build
from raylm.errors import UserError
from raylm.records import Problem
from raylm.tasks.checkers import check, check_exact, check_math, check_number
from raylm.tasks.config import SourceConfig, VerifierConfig
from raylm.tasks.sources import load_problems
from raylm.tasks.verify import Verification, VerifierPool

TRAP = "Answer: $10^{10^{10}}$"
OWN = "own_checkers:misbehave"


@pytest.fixture(autouse=True)
def _own_checkers(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def pool():
    pools = []

    def make(**fields):
        pools.append(VerifierPool(build(VerifierConfig, fields)))
        return pools[-1]

    yield make
    for item in pools:
        item.close()
    assert psutil.Process().children(recursive=True) == []


def problem(checker="math", answer="18", metadata="{}"):
    return Problem("p-1", "t", "What is 9 + 9?", answer, checker, metadata)


def ask(pool, *pairs):
    async def all_of_them():
        return await asyncio.gather(*(pool.verify(item, response) for item, response in pairs))

    return asyncio.run(all_of_them())


def own(response, name=OWN):
    return problem(name), response


def gone(pid):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


# Checkers


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("18", "18.0", True),
        ("He has 9 + 9 = 18.\n#### 18", "$18", True),
        ("1,234", "1234", True),
        ("0.5", "1/2", True),
        ("18", "18 and 19", False),
        ("18", "eighteen", False),
        ("50%", "50", True),
    ],
)
def test_number(gold, answer, right):
    assert check_number(answer, problem("number", gold)) is right


def test_number_refuses_a_gold_answer_that_is_none():
    with pytest.raises(UserError, match=r"problem p-1.*'Paris' is no number; choose checker math or exact"):
        check_number("5", problem("number", "Paris"))


def test_exact():
    assert check_exact(" The CAT.", problem("exact", "the cat"))
    assert not check_exact("the dog", problem("exact", "the cat"))


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("18", "\\frac{36}{2}", True),
        ("p - q", "-q + p", True),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "$(3, \\pi/2)$", True),
        ("0.5", "50\\%", True),
        ("4", "2^2", True),
        ("5", "x = 5", True),
        ("18", "19", False),
        ("p - q", "p + q", False),
        ("\\text{Evelyn}", "Evelyn", True),
        ("east", "seat", False),
        ("Paris", "pairs", False),
        ("(A)", "A", True),
    ],
)
def test_math(gold, answer, right):
    assert check_math(answer, problem("math", gold)) is right


@given(st.text(max_size=30), st.text(max_size=30))
def test_an_answer_equal_to_the_gold_one_is_right_by_every_checker(text, other):
    if not text.strip() or "####" in text:
        return
    assert check_exact(text, problem("exact", text))
    assert check_math(text, problem("math", text))
    assert check_exact(text, problem("exact", other)) == check_exact(other, problem("exact", text)) or "####" in other


def test_check_reads_the_response_and_says_unverifiable_rather_than_wrong():
    assert check(problem(), "9 + 9 = 18\nAnswer: 18") == "correct"
    assert check(problem("auto"), "Answer: \\frac{36}{2}") == "correct"
    assert check(problem("number"), "Answer: 17") == "wrong"
    assert check(problem(), "") == "wrong"
    assert check(*own("raise")) == "unverifiable"
    assert check(problem("own_checkers:says_yes"), "no or yes\nAnswer: 5") == "correct"


def test_task_needs_the_full_score():
    items = load_problems([build(SourceConfig, {"name": "chain_sum", "limit": 2, "seed": 3})])
    assert check(items[0], f"Answer: {items[0].answer}.") == "correct"
    assert check(items[0], f"Answer: {items[0].answer} apples") == "wrong"  # its task gives this a part of the score
    assert check(items[0], f"Answer: {items[1].answer}") == "wrong"


# The pool


def test_bounded_checks_start_no_process(pool):
    made = pool()
    found = ask(
        made,
        (problem("number"), "Answer: $18.00"),
        (problem("exact", "north"), "Answer: South"),
        (problem(), "Answer: 18"),
        (problem(), "Answer: 17"),
        (problem(), "\n"),
    )
    assert [item.verdict for item in found] == ["correct", "wrong", "correct", "wrong", "wrong"]
    assert found[0] == Verification("$18.00", "correct")
    assert psutil.Process().children() == []


def test_risky_checks_agree_with_the_pure_ones(pool):
    task = load_problems([build(SourceConfig, {"name": "chain_sum", "limit": 3})])
    pairs = [(item, f"So.\nAnswer: {answer}") for item in task for answer in (item.answer, "1.5", "zzz")]
    pairs += [(problem(), f"Answer: {answer}") for answer in ("\\frac{36}{2}", "3 \\times 6", "\\sqrt{2}", "x")]
    pairs += [own("yes it is", "own_checkers:says_yes"), own("no", "own_checkers:says_yes")]
    found = ask(pool(workers=2, timeout=100), *pairs)
    assert [item.verdict for item in found] == [check(*pair) for pair in pairs]
    assert {item.reason for item in found} == {""}


def test_the_math_verify_trap_is_killed_and_the_next_check_is_right(pool):
    found = ask(pool(timeout=5), (problem(), TRAP), (problem(), "Answer: \\frac{36}{2}"))
    assert found[0].answer == "10^{10^{10}}"
    assert (found[0].verdict, found[0].reason) == ("unverifiable", "the check took longer than 5 s")
    assert found[1].verdict == "correct"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("spin", "took longer than 3 s"),
        ("hold", "took longer than 3 s"),
        ("exit", "exit code 3"),
        ("segfault", "SIGSEGV"),
        ("eat", "out of memory"),
        ("nibble", "out of memory"),
        ("raise", "LookupError: planned"),
        ("recurse", "RecursionError"),
        ("quit", "SystemExit"),
        ("close", ""),
    ],
)
def test_a_failing_check_costs_one_verdict(pool, what, words):
    others = [own(f"ok {index}") for index in range(6)]
    timeout = 3 if what in ("spin", "hold") else 100
    found = ask(pool(timeout=timeout, memory=1), *others[:3], own(what), *others[3:])
    assert found[3].verdict == "unverifiable"
    assert words in found[3].reason
    assert found[3].reason
    assert [item.verdict for item in found[:3] + found[4:]] == ["correct"] * 6


def test_many_failures_among_many_checks_lose_nothing(pool):
    pairs = [own(f"exit {index}" if index % 5 == 0 else f"ok {index}") for index in range(60)]
    found = ask(pool(workers=2, timeout=100), *pairs)
    assert [item.verdict for item in found] == ["unverifiable" if index % 5 == 0 else "correct" for index in range(60)]


def test_what_a_check_prints_or_reads_does_not_reach_the_protocol(pool):
    assert [item.verdict for item in ask(pool(), own("stdin"), own("yes", "own_checkers:says_yes"))] == ["correct"] * 2


def test_equal_checks_run_once_also_at_the_same_time(pool, tmp_path):
    made, note = pool(workers=2), tmp_path / "pid"
    ask(made, own(f"pid {note}"), own(f"pid {note}"))
    note.unlink()
    assert ask(made, own(f"pid {note}"))[0].verdict == "correct"
    assert not note.exists()


def test_one_pool_serves_many_loops_and_threads(pool):
    made, found = pool(), []

    def work(number):
        found.append(ask(made, own(f"ok {number}"), own("raise"))[0].verdict)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["correct"] * 4


def test_cancelling_one_request_leaves_those_that_wait_for_the_same_verdict(pool):
    async def scenario(made):
        first, second = (asyncio.create_task(made.verify(*own("sleep 0.5"))) for _ in range(2))
        await asyncio.sleep(0.1)
        first.cancel()
        return await second

    assert asyncio.run(scenario(pool())).verdict == "correct"


@pytest.mark.parametrize(
    ("checker", "words"),
    [
        ("numbr", "no checker 'numbr'; did you mean number"),
        ("own_checkers:misbehav", "no function misbehav; did you mean misbehave"),
        ("own_checkers:not_a_function", "no function not_a_function"),
        ("no_such_module:check", "cannot import no_such_module .*PYTHONPATH"),
        ("task", "does not come from reasoning-gym; choose"),
    ],
)
def test_a_checker_that_cannot_be_is_an_error_and_no_verdict(pool, checker, words):
    for _ in range(2):
        with pytest.raises(UserError, match=words):
            ask(pool(), (problem(checker), "Answer: 5"))


def test_a_checker_must_say_true_or_false(pool):
    with pytest.raises(UserError, match=r"misbehave returned 0.5; it must return True or False"):
        ask(pool(), own("score"))


def test_a_module_that_dies_at_its_import_is_an_error(pool, tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text("import os; os._exit(7)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"dying:check cannot be loaded: the import .*exit code 7"):
        ask(pool(), own("x", "dying:check"))


def test_a_source_with_a_checker_of_ones_own_is_tried_when_it_is_loaded(pool, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "q", "answer": "a", "wanted": "42"}\n')
    fields = {"name": "data", "kind": "dataset", "path": str(path)}
    item = load_problems([build(SourceConfig, {**fields, "checker": "own_checkers:has_field"})])[0]
    assert [found.verdict for found in ask(pool(), (item, "it is 42"), (item, "it is 41"))] == ["correct", "wrong"]
    with pytest.raises(UserError, match="did you mean has_field"):
        load_problems([build(SourceConfig, {**fields, "checker": "own_checkers:has_feld"})])


def test_a_start_that_fails_tells_why(pool, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="did not start"):
        ask(pool(), own("x"))


# Ends


def test_close_ends_hanging_checks_and_refuses_new_ones(pool):
    made = pool(timeout=600)

    async def scenario():
        waiting = [asyncio.create_task(made.verify(*own(f"sleep {100 + index}"))) for index in range(3)]
        await asyncio.sleep(1)
        await asyncio.to_thread(made.close)
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert [str(error) for error in asyncio.run(scenario())] == ["the verifier pool is closed"] * 3
    assert psutil.Process().children(recursive=True) == []
    with pytest.raises(RuntimeError, match="closed"):
        ask(made, own("ok"))
    made.close()


def test_what_a_killed_check_started_dies_with_it(pool, tmp_path):
    found = ask(pool(timeout=4), own(f"family {tmp_path / 'pid'}"))
    assert found[0].verdict == "unverifiable"
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_forgotten_pool_leaves_no_process():
    made = VerifierPool(VerifierConfig())
    ask(made, own("ok"))
    (child,) = psutil.Process().children()
    del made
    assert gone(child.pid)


PARENT = """
import asyncio, sys
sys.path.insert(0, {folder!r})
from raylm.records import Problem
from raylm.tasks.config import VerifierConfig
from raylm.tasks.verify import VerifierPool

async def main():
    pool = VerifierPool(VerifierConfig(timeout=600, workers=2))
    await pool.verify(Problem("p", "t", "q", "a", "own_checkers:misbehave"), "pid {pid}")
    print("ready", flush=True)
    await asyncio.gather(*(pool.verify(Problem("p", "t", "q", "a", "own_checkers:misbehave"), what)
                           for what in {whats!r}))

asyncio.run(main())
"""


@pytest.mark.parametrize("whats", [("hold", "hold 2"), ("spin", "sleep 600"), ()])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_leaves_no_child(tmp_path, whats, end):
    """Also when a check holds the interpreter, so that nothing in the child can look after its parent."""
    code = PARENT.format(folder=str(Path(__file__).parent), pid=tmp_path / "pid", whats=whats)
    if not whats:
        code = code.replace("    await asyncio.gather", "    await asyncio.sleep(600)\n    await asyncio.gather")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 60
        while len(psutil.Process(parent.pid).children()) < min(2, max(1, len(whats))) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.0)
        children = psutil.Process(parent.pid).children(recursive=True)
        assert children
        os.kill(parent.pid, end)
        parent.wait()
        assert all(gone(child.pid) for child in children)
