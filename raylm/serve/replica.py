"""What runs in Serve's replicas: models with or without HTTP before them, and the gateway before other deployments."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from raylm.config import build
from raylm.errors import UserError
from raylm.serve import api, batcher, retriever, reward
from raylm.serve.config import ServeConfig
from raylm.serve.errors import ApiError, busy
from raylm.serve.logs import event, to_stderr
from raylm.serve.metrics import Metrics
from raylm.serve.routes import Served, create_app
from raylm.serve.service import Batch, Service

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

TRIES = 3
"""Of a call to a deployment whose replica dies under it."""


class Replica:
    """Models of one kind in one process."""

    def __init__(self, settings: dict[str, Any], kind: str) -> None:
        """Prepare; the models come by `reconfigure`, which Serve calls before the first request.

        Args:
            settings: a ServeConfig without models.
            kind: reward or retriever.
        """
        to_stderr()
        self.settings, self.kind = settings, kind
        self.served = Served(_config(settings, {}), Metrics(ray=True))
        self.service: Service[Any] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def reconfigure(self, models: dict[str, Any]) -> None:
        """Serve these models from now on; if the default one cannot be loaded, those before go on.

        Raises:
            UserError: there are none before.
        """
        try:
            config = _config(self.settings, models)
            service = await asyncio.to_thread(self._start, config)
        except UserError as error:
            if self.service is None:
                raise
            event("models_refused", level=logging.ERROR)
            self.service.versions.errors.update(dict.fromkeys(self.service.names, str(error)))
            return
        old, self.service = self.service, service
        self.served.config = config
        setattr(self.served, self.kind, _Opening(service, config.scaling.max_loaded))
        if self._watch:
            self._watch.cancel()
        self._watch = asyncio.create_task(service.watch(config.scaling.watch_seconds))
        if old is not None:
            await old.close()

    async def call(self, method: str, *arguments: Any) -> Any:
        """For the gateway: the method's result, or its ApiError."""
        try:
            return await getattr(getattr(self.served, self.kind), method)(*arguments)
        except ApiError as error:
            return error

    async def check_health(self) -> None:
        """Asked by Serve; a replica that fails it again and again is replaced."""
        if self.service is not None:
            self.service.check()

    def _start(self, config: ServeConfig) -> Service[Any]:
        threads, gpus = max(1, int(config.scaling.cpus)), config.scaling.gpus
        more: dict[str, Any] = {
            "size": config.batching.size,
            "most": config.scaling.max_loaded,
            "batch": _batch(config),
        }
        more["batch"] = _batch(config)
        service: Service[Any]
        if self.kind == "reward":
            service = reward.RewardService(reward.sources(config.reward, threads, gpus), self.served.metrics, **more)
        else:
            given = retriever.sources(config.retriever, threads, gpus)
            service = retriever.RetrieverService(given, self.served.metrics, **more)
        service.start()
        return service


class HttpReplica(Replica):
    """The same, answering HTTP."""

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self.served, (self.kind,), own_ids=False)


class Gateway:
    """HTTP before both kinds of models, each in a deployment of its own."""

    def __init__(self, settings: dict[str, Any], reward: DeploymentHandle, retriever: DeploymentHandle) -> None:
        """Prepare; the names of the models come by `reconfigure`."""
        to_stderr()
        self.settings = settings
        metrics = Metrics(ray=True)
        self.served = Served(_config(settings, {}), metrics, Remote(reward), Remote(retriever))

    def reconfigure(self, models: dict[str, Any]) -> None:
        """Know these models."""
        self.served.config = _config(self.settings, models)

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self.served, own_ids=False)


class Remote:
    """A service in another deployment."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._handles: dict[str, DeploymentHandle] = {}

    async def score(self, name: str, prompt: reward.Prompt, responses: Sequence[str]) -> reward.Scored:
        """As `RewardService.score`."""
        scored: reward.Scored = await self._call(name, "score", name, prompt, responses)
        return scored

    async def encode(self, name: str, texts: Sequence[str], kind: retriever.Kind) -> retriever.Vectors:
        """As `RetrieverService.encode`."""
        vectors: retriever.Vectors = await self._call(name, "encode", name, texts, kind)
        return vectors

    async def search(self, name: str, queries: Sequence[str], k: int, mode: retriever.Mode) -> retriever.Hits:
        """As `RetrieverService.search`."""
        hits: retriever.Hits = await self._call(name, "search", name, queries, k, mode)
        return hits

    async def write(self, name: str, ids: Sequence[str], texts: Sequence[str] | None) -> retriever.Written:
        """As `RetrieverService.write`."""
        written: retriever.Written = await self._call(name, "write", name, ids, texts)
        return written

    async def models(self) -> list[api.Model]:
        """As `Service.models`, of one replica."""
        models: list[api.Model] = await self._call("", "models")
        return models

    async def reasons(self) -> list[str]:
        """As `Service.reasons`, of one replica."""
        try:
            reasons: list[str] = await self._call("", "reasons")
        except ApiError as error:
            return [error.message]
        return reasons

    async def _call(self, model: str, method: str, *arguments: Any) -> Any:
        """Call a replica that has the model in memory, if one has. All methods may be repeated: writes are by id."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        handle = self._handles.get(model)
        if handle is None:
            handle = self._handle.options(multiplexed_model_id=model) if model else self._handle
            self._handles[model] = handle
        for tried in range(TRIES):
            await asyncio.sleep(0.2 * tried)
            try:
                result = await handle.call.remote(method, *arguments)
            except BackPressureError:
                raise busy() from None
            except (RayActorError, DeploymentUnavailableError):
                continue
            if isinstance(result, ApiError):
                raise result
            return result
        message = "the model's replica went away; another one takes over, so try again"
        raise ApiError(503, "replica_lost", message, headers={"Retry-After": "1"})


class _Opening:
    """A service whose models are opened through Serve's multiplexing, which sends requests to where a model is."""

    def __init__(self, service: Service[Any], most: int) -> None:
        from ray import serve

        async def opened(name: str) -> str:
            return await service.open(name)

        self._service = service
        self._open = serve.multiplexed(opened, max_num_models_per_replica=most)

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        function = getattr(self._service, method)
        if method in ("models", "reasons"):
            return function

        async def call(name: str, *arguments: Any) -> Any:
            await self._open(name)
            return await function(name, *arguments)

        return call


def _batch(config: ServeConfig) -> Batch:
    if config.batching.kind == "free":
        return batcher.batched

    def by_clock(run: Callable[[list[Any]], Awaitable[Sequence[Any]]], size: int) -> Callable[[Any], Awaitable[Any]]:
        from ray import serve

        async def each(jobs: list[Any]) -> list[Any]:
            return list(await run(jobs))

        decorated = serve.batch(each, max_batch_size=size, batch_wait_timeout_s=config.batching.wait_ms / 1000)

        async def one(job: Any) -> Any:
            result = await decorated(job)
            if isinstance(result, BaseException):
                raise result
            return result

        return one

    return by_clock


def _config(settings: dict[str, Any], models: dict[str, Any]) -> ServeConfig:
    return build(ServeConfig, {**settings, **models})
