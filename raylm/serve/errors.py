"""Errors that a client gets: a status, and a body in the form of OpenAI's that says what to do."""

from __future__ import annotations

import json
from typing import Any

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that gets another status than 200."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        """Say what was wrong.

        Args:
            status: of HTTP.
            code: short name for programs.
            message: what was wrong and what to do; never holds a text or token of the request.
            param: dotted name of the field at fault.
            headers: of the answer.
        """
        super().__init__(status, code, message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = headers or {}

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"param": self.param, "headers": self.headers}
        return type(self), (self.status, self.code, self.message), state

    def body(self, request_id: str) -> bytes:
        """The answer's body."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        said = {"message": self.message, "type": kind, "param": self.param, "code": self.code, "request_id": request_id}
        return json.dumps({"error": said}).encode()


def unknown_model(known: list[str]) -> ApiError:
    """For a name that does not exist for the key at hand."""
    there = ", ".join(known) or "none"
    return ApiError(404, "model_not_found", f"no such model; there are: {there}", param="model")


def busy(seconds: int = 1) -> ApiError:
    """For a request beyond those that a replica holds."""
    message = f"too many requests at once; try again in {seconds} s"
    return ApiError(429, "overloaded", message, headers={"Retry-After": str(seconds)})
