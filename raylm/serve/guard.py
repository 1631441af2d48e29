"""ASGI middleware around everything: request ids, tokens, limits, deadlines, metrics and one log line a request.

It decides before a body is read, and it never logs a body, a query string or a token.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from raylm.serve.auth import Keys
from raylm.serve.config import Limits
from raylm.serve.errors import ApiError, busy
from raylm.serve.logs import event
from raylm.serve.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN = frozenset({"/", "/page.js", "/page.css", "/docs", "/docs.js", "/openapi.json", "/healthz", "/readyz"})
"""Paths without a token: they hold no model's and no document's data."""
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Paths that are answered also when the replica is full, and are not logged."""
MOST_HEADERS = 100
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Guard:
    """The middleware; one for each replica."""

    def __init__(self, app: App, keys: Keys, limits: Limits, metrics: Metrics, own_ids: bool = True) -> None:
        """Wrap an application.

        Args:
            app: gets whole bodies of requests that may be answered.
            keys: who may ask.
            limits: of requests.
            metrics: of the replica.
            own_ids: whether to send the request's id back; Serve does that by itself.
        """
        self.app, self.keys, self.limits, self.metrics, self.own_ids = app, keys, limits, metrics, own_ids
        self.in_flight = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = _Call(scope, send, self.own_ids)
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        try:
            await self._answer(scope, receive, call)
        except ApiError as error:
            await call.fail(error)
        except asyncio.CancelledError:
            call.status = call.status or 499  # the client went away
            raise
        except Exception:  # whatever is left is ours: the client gets an id, the log the traceback
            event("request_failed", level=logging.ERROR, id=call.id)
            message = f"the server failed; its log names request {call.id}"
            await call.fail(ApiError(500, "internal_error", message))
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.set(self.in_flight)
            self._record(call)

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, call: _Call) -> None:
        path, headers = scope["path"], scope["headers"]
        if len(headers) > MOST_HEADERS or sum(len(k) + len(v) for k, v in headers) > self.limits.header_bytes:
            message = f"headers are limited to {MOST_HEADERS} and {self.limits.header_bytes} bytes in all"
            raise ApiError(431, "headers_too_large", message, headers={"Connection": "close"})
        peer = scope["client"][0] if scope.get("client") else None
        key = self.keys.who(call.header(b"authorization"), peer) if path not in OPEN or not self.keys.keys else None
        call.key = key.name if key else "-"
        if self.in_flight > self.limits.in_flight and path not in PROBES:
            raise busy()
        self._check_length(call)
        scope["state"] = {**scope.get("state", {}), "key": key, "request_id": call.id, "call": call}
        body = await self._read(receive)
        call.bytes = len(body)
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()  # waits for the client to go away
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        deadline = asyncio.get_running_loop().time() + self.limits.request_seconds
        try:
            await asyncio.wait_for(self.app(scope, replay, call.send), self.limits.request_seconds)
        except asyncio.TimeoutError:
            if asyncio.get_running_loop().time() < deadline or call.started:
                raise
            message = f"no answer within {self.limits.request_seconds:g} s; ask for less at once, or try again"
            raise ApiError(504, "timeout", message, headers={"Retry-After": "1"}) from None

    async def _read(self, receive: Receive) -> bytes:
        """The body, within its limits of size and time."""
        parts: list[bytes] = []
        size, deadline = 0, time.monotonic() + self.limits.body_seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                text = f"the body did not come within {self.limits.body_seconds:g} s; send it again at once"
                raise ApiError(408, "body_timeout", text, headers={"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                raise ApiError(499, "client_gone", "the client went away")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.body_bytes:
                raise too_large(self.limits)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _check_length(self, call: _Call) -> None:
        said = call.header(b"content-length")
        if said is None:
            return
        if not said.isdigit():
            raise ApiError(400, "bad_length", "Content-Length is not a number", headers={"Connection": "close"})
        if len(said) > 18 or int(said) > self.limits.body_bytes:
            raise too_large(self.limits)

    def _record(self, call: _Call) -> None:
        seconds = time.monotonic() - call.began
        self.metrics.request(call.route, call.status, seconds)
        if call.path not in PROBES:
            said = {"method": call.method, "path": call.route, "status": call.status, "ms": round(seconds * 1000, 1)}
            event("request", id=call.id, key=call.key, bytes=call.bytes, **said, **call.facts)


def too_large(limits: Limits) -> ApiError:
    """For a body beyond the limit."""
    message = f"the body is larger than {limits.body_bytes} bytes; send fewer or shorter texts"
    return ApiError(413, "body_too_large", message, headers={"Connection": "close"})


class _Call:
    """What is known of a request, and its answer."""

    def __init__(self, scope: MutableMapping[str, Any], send: Send, own_id: bool) -> None:
        self.scope, self._send, self.own_id = scope, send, own_id
        self.began = time.monotonic()
        asked = self.header(b"x-request-id") or b""
        self.id = asked.decode() if _ID.fullmatch(asked) else uuid.uuid4().hex
        self.method, self.path = scope["method"], scope["path"]
        self.status, self.started, self.bytes, self.key = 0, False, 0, "-"
        self.facts: dict[str, Any] = {}

    @property
    def route(self) -> str:
        """The route's template, so that logs and metrics hold no ids; what never reached a route is `other`."""
        return str(getattr(self.scope.get("route"), "path", "other"))

    def header(self, name: bytes) -> bytes | None:
        """A header's value, None when it is not there."""
        return next((value for key, value in self.scope["headers"] if key.lower() == name), None)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            if self.own_id:
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """Answer with an error, if nothing was sent yet."""
        if self.started:
            return
        body = error.body(self.id)
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        named = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": named})
        await self.send({"type": "http.response.body", "body": body})
