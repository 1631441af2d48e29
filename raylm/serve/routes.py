"""The HTTP surface: one FastAPI application over whichever services are there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from raylm import __version__
from raylm.serve import api
from raylm.serve.auth import Keys
from raylm.serve.config import Key, ServeConfig
from raylm.serve.errors import ApiError, unknown_model
from raylm.serve.guard import Guard
from raylm.serve.metrics import Metrics
from raylm.serve.retriever import RetrieverBackend
from raylm.serve.reward import RewardBackend

PAGE = Path(__file__).parent / "page"
FILES = {"/": "index.html", "/docs": "docs.html", "/page.js": "page.js", "/docs.js": "docs.js", "/page.css": "page.css"}
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
STATUSES: dict[int | str, dict[str, Any]] = {
    status: {"model": api.Error, "description": words}
    for status, words in {
        400: "Malformed: the message names the field.",
        401: "No token, or an unknown one.",
        403: "The key may not do this.",
        404: "No such model or document for this key.",
        408: "The body came too slowly.",
        413: "Too large a body, too many or too long texts.",
        429: "Too many requests at once; see Retry-After.",
        431: "Too large headers.",
        500: "A fault of the server; its log names the request id.",
        503: "Not ready, or the disk is away; try again.",
        504: "No answer in time.",
    }.items()
}


class Backend(Protocol):
    """What the routes ask of every service."""

    async def models(self) -> list[api.Model]:
        """Its models."""
        ...

    async def reasons(self) -> list[str]:
        """Why it is not ready; empty when it is."""
        ...


class Reward(Backend, RewardBackend, Protocol):
    """The reward service, here or in another deployment."""


class Retriever(Backend, RetrieverBackend, Protocol):
    """The retriever service, here or in another deployment."""


@dataclass
class Served:
    """Everything that the routes need; config and services are replaced while they serve."""

    config: ServeConfig
    metrics: Metrics
    reward: Reward | None = None
    retriever: Retriever | None = None

    @property
    def rewards(self) -> Reward:
        """The reward service, once a model was chosen from it."""
        assert self.reward is not None
        return self.reward

    @property
    def retrievers(self) -> Retriever:
        """The retriever service, once a model was chosen from it."""
        assert self.retriever is not None
        return self.retriever

    def names(self, kind: str) -> list[str]:
        """Of the models of a kind."""
        if kind == "reward":
            return list(self.config.reward) if self.reward else []
        return list(self.config.retriever) if self.retriever else []

    def backends(self) -> list[Backend]:
        """Services that are there."""
        return [item for item in (self.reward, self.retriever) if item is not None]

    def choose(self, request: Request, name: str | None, kinds: Sequence[str]) -> tuple[str, str]:
        """The (kind, name) of the model that a request means, the first one of these kinds if it names none.

        Raises:
            ApiError: 404 when there is none of that name for the request's key.
        """
        key = key_of(request)
        own = [(kind, item) for kind in kinds for item in self.names(kind) if key.may_use(item)]
        chosen = next((pair for pair in own if name is None or pair[1] == name), None)
        if chosen is None:
            raise unknown_model([item for _, item in own])
        request.state.call.facts["model"] = chosen[1]
        return chosen


def create_app(served: Served, kinds: Sequence[str] = ("reward", "retriever"), own_ids: bool = True) -> FastAPI:
    """The application, guarded.

    Args:
        served: its services, which may come later.
        kinds: services whose routes there are.
        own_ids: see `Guard`.
    """
    from raylm.serve import retriever_routes, reward_routes

    app = FastAPI(
        title="raylm",
        version=__version__,
        description="Rewards that say why, vectors and search. Errors have OpenAI's form.",
        docs_url=None,  # FastAPI's page would load scripts from elsewhere
        redoc_url=None,
    )
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    _add_common(app, served)
    if "reward" in kinds:
        reward_routes.add(app, served)
    if "retriever" in kinds:
        retriever_routes.add(app, served)
    retriever_routes.add_rerank(app, served)
    config = served.config
    app.add_middleware(Guard, keys=Keys(config.keys), limits=config.limits, metrics=served.metrics, own_ids=own_ids)
    return app


def options(summary: str, answer: type[BaseModel]) -> dict[str, Any]:
    """What every route under /v1 says of itself."""
    bearer = Security(HTTPBearer(auto_error=False, description="Not needed where the server has no keys."))
    return {"summary": summary, "response_model": answer, "responses": STATUSES, "dependencies": [bearer]}


def reply(answer: BaseModel) -> Response:
    """An answer, written once; FastAPI would validate it again."""
    return Response(answer.model_dump_json(), media_type="application/json")


def key_of(request: Request) -> Key:
    """Who asks; only open paths have none, and they do not ask for it."""
    key: Key = request.state.key
    assert key is not None
    return key


def _add_common(app: FastAPI, served: Served) -> None:
    @app.get("/v1/models", **options("Models that the key may use", api.Models))
    async def models(request: Request) -> Response:
        listed = await asyncio.gather(*(backend.models() for backend in served.backends()))
        own = [model for each in listed for model in each if key_of(request).may_use(model.id)]
        return reply(api.Models(data=own))

    @app.get("/healthz", response_model=api.Health, summary="Whether the replica lives")
    async def healthz() -> Response:
        return reply(api.Health(status="ok"))

    @app.get(
        "/readyz", response_model=api.Health, responses={503: {"model": api.Health}}, summary="Whether it is ready"
    )
    async def readyz() -> Response:
        each = await asyncio.gather(*(backend.reasons() for backend in served.backends()))
        reasons = [reason for some in each for reason in some]
        health = api.Health(status="not_ready" if reasons else "ok", reasons=reasons)
        return Response(health.model_dump_json(), 503 if reasons else 200, media_type="application/json")

    @app.get("/metrics", summary="Metrics of the replica, for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(served.metrics.page(), media_type="text/plain; version=0.0.4")

    kinds = {"html": "html", "js": "javascript", "css": "css"}
    for path, file in FILES.items():
        page = _page((PAGE / file).read_bytes(), f"text/{kinds[file.rpartition('.')[2]]}; charset=utf-8")
        app.add_api_route(path, page, include_in_schema=False)


def _page(content: bytes, kind: str) -> Any:
    async def page() -> Response:
        return Response(content, media_type=kind, headers=SECURITY)

    return page


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    body = error.body(request.state.request_id)
    return Response(body, error.status, {**error.headers}, media_type="application/json")


async def _invalid(request: Request, error: Exception) -> Response:
    """Names the first fields at fault. Values stay out of it: they may be long, or another's."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if found and found[0]["type"] == "json_invalid":
        return await _api_error(request, ApiError(400, "invalid_json", "the body is not valid JSON"))
    named = []
    for item in found[:3]:
        place = ".".join(str(part) for part in item["loc"][1:]) or "body"
        named.append(f"{place[:80]}: {item['msg'][:160]}")
    param = named[0].partition(":")[0] if named else None
    return await _api_error(request, ApiError(400, "invalid_request", "; ".join(named), param=param))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {
        404: ("not_found", "there is no such path; /docs shows all"),
        405: ("method_not_allowed", "this path has other methods; /docs shows all"),
        400: ("invalid_json", "the body is not valid JSON in UTF-8"),
    }
    code, message = known.get(error.status_code, ("error", str(error.detail)))
    return await _api_error(request, ApiError(error.status_code, code, message, headers=dict(error.headers or {})))
