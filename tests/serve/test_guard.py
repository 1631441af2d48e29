"""Limits, tokens and faults, before and after a body is read; spoken to in bare ASGI."""

import asyncio
import json
import logging

import pytest

from raylm.serve.auth import Keys, digest, new_token
from raylm.serve.config import Key, Limits
from raylm.serve.errors import ApiError
from raylm.serve.guard import Guard
from raylm.serve.metrics import Metrics

LIMITS = Limits(body_bytes=100, header_bytes=500, in_flight=2, body_seconds=0.1, request_seconds=0.2)


async def echo(scope, receive, send):
    """Answers with the body that it got."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def ask(guard, *, body=b"", path="/v1/score", headers=(), peer="127.0.0.1", chunks=None):
    """Status, headers and body of an answer, and how many pieces of the body were taken."""
    pieces = list(chunks if chunks is not None else [body])
    taken, sent = [], []

    async def receive():
        if not pieces:
            await asyncio.sleep(60)
        taken.append(pieces.pop(0))
        return {"type": "http.request", "body": taken[-1], "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers), "client": (peer, 1)}
    await guard(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:]), len(taken)


def guard(app=echo, keys=(), limits=LIMITS):
    return Guard(app, Keys(keys), limits, Metrics())


def run(coroutine):
    return asyncio.run(coroutine)


def code(answer):
    error = json.loads(answer[2])["error"]
    assert error["request_id"] == answer[1]["x-request-id"]
    return answer[0], error["code"]


def test_a_body_within_limits_reaches_the_application_whole():
    status, headers, body, _ = run(ask(guard(), chunks=[b"ab", b"", b"c"]))
    assert (status, body) == (200, b"abc")
    assert len(headers["x-request-id"]) == 32


def test_a_large_body_is_refused_before_it_is_read():
    answer = run(ask(guard(), body=b"x" * 101, headers=[(b"content-length", b"10000000")]))
    assert code(answer) == (413, "body_too_large")
    assert answer[1]["connection"] == "close"
    assert answer[3] == 0


def test_a_large_body_without_a_length_is_read_no_further_than_the_limit():
    answer = run(ask(guard(), chunks=[b"x" * 60] * 1000))
    assert code(answer) == (413, "body_too_large")
    assert answer[3] == 2


@pytest.mark.parametrize("length", [b"-1", b"many", b"1e3", "\u0663".encode()])
def test_a_length_that_is_no_number(length):
    assert code(run(ask(guard(), headers=[(b"content-length", length)]))) == (400, "bad_length")


def test_a_huge_length_is_too_large_and_not_a_crash():
    assert code(run(ask(guard(), headers=[(b"content-length", b"9" * 400)]))) == (413, "body_too_large")


def test_many_or_long_headers():
    many = [(b"x-%d" % number, b"") for number in range(101)]
    assert code(run(ask(guard(), headers=many))) == (431, "headers_too_large")
    assert code(run(ask(guard(), headers=[(b"x", b"y" * 500)]))) == (431, "headers_too_large")


def test_a_slow_client_is_let_go():
    async def drip():
        async def receive():
            await asyncio.sleep(0.06)
            return {"type": "http.request", "body": b".", "more_body": True}

        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": [], "client": ("127.0.0.1", 1)}
        await guard()(scope, receive, send)
        return sent

    assert run(drip())[0]["status"] == 408


def test_a_late_answer_becomes_504_and_its_work_is_cancelled():
    cancelled = []

    async def slow(scope, receive, send):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    answer = run(ask(guard(slow)))
    assert code(answer) == (504, "timeout")
    assert answer[1]["retry-after"] == "1"
    assert cancelled == [True]


def test_a_full_replica_says_when_to_come_back_and_still_answers_probes():
    async def scene():
        release = asyncio.Event()

        async def held(scope, receive, send):
            if scope["path"] == "/v1/score":
                await release.wait()
            await echo(scope, receive, send)

        full = guard(held, limits=Limits(in_flight=2))
        waiting = [asyncio.create_task(ask(full)) for _ in range(2)]
        await asyncio.sleep(0.01)
        third, probe = await ask(full), await ask(full, path="/healthz")
        release.set()
        first = await asyncio.gather(*waiting)
        return third, probe, first, await ask(full)

    third, probe, first, after = run(scene())
    assert code(third) == (429, "overloaded")
    assert third[1]["retry-after"] == "1"
    assert [probe[0], after[0], *(answer[0] for answer in first)] == [200] * 4


def test_a_fault_is_logged_with_its_id_and_told_without_its_text(caplog):
    async def broken(scope, receive, send):
        raise RuntimeError("the secret")

    with caplog.at_level(logging.ERROR, "raylm.serve"):
        answer = run(ask(guard(broken), headers=[(b"x-request-id", b"my-id.7")]))
    assert code(answer) == (500, "internal_error")
    assert b"secret" not in answer[2]
    assert caplog.records[0].facts["id"] == "my-id.7"


@pytest.mark.parametrize("asked", [b"a b", b"x" * 65, b"a\nb", b'{"a"}'])
def test_an_id_that_would_spoil_the_log_is_replaced(asked):
    assert len(run(ask(guard(), headers=[(b"x-request-id", asked)]))[1]["x-request-id"]) == 32


def test_the_log_holds_no_body_and_no_token(caplog):
    token, key = new_token("alice")
    headers = [(b"authorization", f"Bearer {token}".encode())]
    with caplog.at_level(logging.INFO, "raylm.serve"):
        run(ask(guard(keys=[key]), body=b"private words", headers=headers))
    facts = caplog.records[-1].facts
    assert (facts["key"], facts["status"], facts["bytes"]) == ("alice", 200, 13)
    assert "private" not in str(facts)
    assert token not in str(facts)


def test_tokens():
    token, key = new_token("alice")
    other = Key(name="bob", sha256=digest(b"bobs"))
    keys = Keys([key, other])
    assert keys.who(f"Bearer {token}".encode(), None).name == "alice"
    assert keys.who(b"bearer  bobs", None).name == "bob"
    for header in (None, b"", b"Bearer", b"Bearer ", b"Basic bobs", b"Bearer bobs2", b"bobs", b"Bearer \xff\x00"):
        with pytest.raises(ApiError) as caught:
            keys.who(header, "127.0.0.1")
        assert caught.value.status == 401
        assert caught.value.headers == {"WWW-Authenticate": "Bearer"}


def test_without_keys_only_this_machine_is_answered():
    assert run(ask(guard(), peer="::1"))[0] == 200
    assert code(run(ask(guard(), peer="10.0.0.7"))) == (403, "loopback_only")
    assert code(run(ask(guard(), peer="10.0.0.7", path="/"))) == (403, "loopback_only")


def test_an_unknown_token_is_refused_before_the_body_is_read():
    _, key = new_token("alice")
    answer = run(ask(guard(keys=[key]), headers=[(b"authorization", b"Bearer x")]))
    assert code(answer) == (401, "invalid_api_key")
    assert answer[3] == 0
