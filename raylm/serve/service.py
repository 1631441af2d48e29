"""What the reward and the retriever service share: one thread for the model, batches by model, errors one by one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Literal, TypeVar

from raylm.errors import UserError
from raylm.serve import api
from raylm.serve.batcher import Sized, batched
from raylm.serve.errors import ApiError
from raylm.serve.logs import event
from raylm.serve.metrics import Metrics
from raylm.serve.versions import Source, Versions

JobT = TypeVar("JobT", bound=Sized)
ModelT = TypeVar("ModelT")
Batch = Callable[[Callable[[list[Any]], Awaitable[Sequence[Any]]], int], Callable[[Any], Awaitable[Any]]]
"""Makes a function of one job from a function of many; `raylm.serve.batcher.batched`, or Serve's."""
STUCK = 300.0
"""Seconds in the model after which a replica counts as broken."""


class Service(Generic[ModelT]):
    """Models of one kind, and a thread that they run on, so that the event loop never waits for them."""

    kind: Literal["reward", "retriever"]

    def __init__(
        self,
        sources: Mapping[str, Source[ModelT]],
        metrics: Metrics,
        *,
        size: int = 32,
        most: int = 4,
        batch: Batch = batched,
    ) -> None:
        """Know the sources; `start` loads the default one.

        Args:
            sources: by name; the first is the default.
            metrics: of the replica.
            size: texts in a batch.
            most: models in memory.
            batch: how jobs become batches.
        """
        self.metrics, self.began = metrics, int(time.time())
        self.versions = Versions(sources, most, lambda name, outcome: metrics.loads.inc(model=name, outcome=outcome))
        self._thread = ThreadPoolExecutor(1, f"raylm-{self.kind}")
        self._busy_since: float | None = None
        self._submit, self._pending = batch(self._run, size), 0

    @property
    def names(self) -> list[str]:
        """Names of all models."""
        return list(self.versions.sources)

    def start(self) -> None:
        """Load the default model.

        Raises:
            UserError: it cannot be loaded.
        """
        self.versions.get(self.names[0])

    async def open(self, name: str) -> str:
        """Have a model in memory; returns its name."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._model, name)
        return name

    async def watch(self, seconds: float) -> None:
        """Look for new files for ever; loading runs beside the serving."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await asyncio.to_thread(self.versions.refresh)
            except OSError as error:  # a disk that is away for a while
                event("watch_failed", level=logging.WARNING, error=str(error))

    def check(self) -> None:
        """Whether the model's thread is alive.

        Raises:
            RuntimeError: it has been in one batch for too long.
        """
        since = self._busy_since
        if since is not None and time.monotonic() - since > STUCK:
            raise RuntimeError(f"the {self.kind} model has been in one batch for more than {STUCK:g} s")

    async def reasons(self) -> list[str]:
        """Why requests to the default model would fail; empty when they would not."""
        default = self.names[0]
        return [] if self.versions.peek(default) is not None else [f"{default} is not loaded"]

    async def models(self) -> list[api.Model]:
        """What is served, and in which version."""
        found = []
        for name in self.names:
            revision, details = self.describe(name)
            facts = {"loaded": revision is not None, "revision": revision, "error": self.versions.errors.get(name)}
            found.append(api.Model(id=name, kind=self.kind, created=self.began, details=details, **facts))
        return found

    def describe(self, name: str) -> tuple[str | None, dict[str, Any]]:
        """Revision and facts of the version in memory; None and nothing when there is none."""
        raise NotImplementedError

    async def close(self) -> None:
        """Answer what waits, then let the thread go; nothing may be submitted any more."""
        while self._pending:
            await asyncio.sleep(0.05)
        self._thread.shutdown(wait=False)

    async def submit(self, job: Any) -> Any:
        """The result of a job, which may wait for others."""
        self._pending += 1
        try:
            return await self._submit(job)
        finally:
            self._pending -= 1

    def run_batch(self, model: ModelT, name: str, jobs: list[Any]) -> list[Any]:
        """Do jobs of one `group` on one model; called in the thread."""
        raise NotImplementedError

    def group(self, job: Any) -> Hashable:
        """Jobs of equal group and model are run together, groups in the order of their first jobs."""
        return None

    def _model(self, name: str) -> ModelT:
        try:
            return self.versions.get(name)
        except KeyError:  # a gateway may know of a new model before this replica does
            message = "the model is about to be loaded; try again"
            raise ApiError(503, "model_not_ready", message, param="model", headers={"Retry-After": "1"}) from None
        except UserError as error:
            event("load_failed", level=logging.ERROR, model=name)
            raise ApiError(
                503, "model_unavailable", "the model cannot be loaded; see /v1/models", param="model"
            ) from error

    async def _run(self, jobs: list[Any]) -> list[Any]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._in_thread, jobs)

    def _in_thread(self, jobs: list[Any]) -> list[Any]:
        groups: dict[Hashable, list[int]] = {}
        for place, job in enumerate(jobs):
            groups.setdefault((job.name, self.group(job)), []).append(place)
        found: list[Any] = [None] * len(jobs)
        for places in groups.values():
            self._busy_since = began = time.monotonic()
            chosen = [jobs[place] for place in places]
            for place, result in zip(places, self._attempt(chosen), strict=True):
                found[place] = result
            self._busy_since = None
            self.metrics.batch_texts.observe(sum(job.size for job in chosen), service=self.kind)
            self.metrics.batch_seconds.observe(time.monotonic() - began, service=self.kind)
        return found

    def _attempt(self, jobs: list[Any]) -> list[Any]:
        """Results; when a batch fails, its jobs are tried alone, so that one bad request spoils no other."""
        try:
            return self.run_batch(self._model(jobs[0].name), jobs[0].name, jobs)
        except Exception as error:
            if len(jobs) > 1 and not (isinstance(error, ApiError) and error.status == 503):
                return [self._attempt([job])[0] for job in jobs]
            if isinstance(error, UserError):
                return [ApiError(400, "bad_text", str(error))]
            return [error] * len(jobs)
