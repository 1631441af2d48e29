"""What is served, to whom, and within which limits; the one argument of every builder in `raylm.serve.app`."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from raylm.config import Config, runtime

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Key(Config):
    """A bearer token, by its digest; `raylm serve-token NAME` makes one."""

    name: str
    """Who uses it; stands in the logs."""
    sha256: str
    """SHA-256 of the token in hex. The token itself is kept nowhere."""
    models: tuple[str, ...] = ("*",)
    """Names that it may use; `*` is all. The others do not exist for it."""
    write: bool = False
    """Whether it may upsert and delete documents."""

    @field_validator("sha256")
    @classmethod
    def _digest(cls, value: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{64}", value):
            raise ValueError("64 hex digits are needed, not the token itself; `raylm serve-token NAME` prints them")
        return value

    def may_use(self, name: str) -> bool:
        """Whether a model or retriever exists for this key."""
        return "*" in self.models or name in self.models


class RewardSource(Config):
    """A reward model to serve."""

    path: str
    """Directory that train-reward wrote; replace it, or what a link points to, and the new one is served."""
    revision: str | None = None
    """Digest that its files must have (`revision` of /v1/models), for a directory without its stage's manifest."""


class RetrieverSource(Config):
    """An encoder, and documents to search."""

    encoder: str = "all-minilm-l6-v2"
    """Directory, known name or hub id."""
    index: str | None = None
    """Directory of an index of that encoder; without one there are only embeddings and rerank."""
    journal: str | None = None
    """Directory of the log of upserts and deletes, on a disk that all replicas share; without one they are refused."""
    mode: Literal["dense", "bm25", "hybrid"] = "dense"
    """How to search where a request does not say."""

    @model_validator(mode="after")
    def _journal_needs_index(self) -> RetrieverSource:
        if self.journal and not self.index:
            raise ValueError("journal: documents are written to an index; give one")
        return self


class Limits(Config):
    """What a request may ask for; whatever is beyond gets 413, 429, 431 or 504."""

    body_bytes: int = 1 << 20
    """Bytes of a body, refused before they are read."""
    header_bytes: int = 16384
    """Bytes of all headers."""
    texts: int = 256
    """Texts, responses or documents in one request."""
    text_chars: int = 50_000
    """Characters of one text."""
    top_k: int = 1000
    """Documents that one query may ask for."""
    in_flight: int = 256
    """Requests that a replica holds at once; the next one gets 429 with Retry-After."""
    body_seconds: float = 10.0
    """Within which a body must have come."""
    request_seconds: float = 30.0
    """Within which an answer must be ready."""

    @field_validator("body_bytes", "header_bytes", "texts", "text_chars", "top_k", "in_flight")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError("at least 1 is needed")
        return value


class Batching(Config):
    """How requests are put together for the model."""

    size: int = 32
    """Texts that go through the model at once."""
    kind: Literal["free", "clock"] = "free"
    """`free` takes all that waits when the model is free; `clock` is Serve's own @serve.batch."""
    wait_ms: float = 10.0
    """For `clock`: how long a batch waits for more requests."""

    @field_validator("size")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError("at least 1 is needed")
        return value


class Scaling(Config):
    """Replicas of each deployment."""

    min_replicas: int = 1
    """Always there."""
    max_replicas: int = 1
    """At most; between them Serve scales by the requests in flight."""
    target_ongoing_requests: float = 32.0
    """In flight in each replica, which scaling aims at."""
    up_seconds: float = 30.0
    """For which more must be in flight before a replica is added."""
    down_seconds: float = 600.0
    """For which less must be in flight before a replica goes."""
    cpus: float = 1.0
    """Of a replica; also its torch threads."""
    gpus: float = 0.0
    """Of a replica."""
    max_loaded: int = 4
    """Models that a replica keeps in memory; the one that was not used for longest goes."""
    watch_seconds: float = 10.0
    """How often a replica looks for new files of its models."""

    @model_validator(mode="after")
    def _ordered(self) -> Scaling:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ValueError("1 <= min_replicas <= max_replicas is needed")
        if self.max_loaded < 1:
            raise ValueError("max_loaded: at least 1 is needed")
        return self


class ServeConfig(Config):
    """`raylm serve`, and `args` of an application in a Serve config file."""

    app: Literal["reward", "retriever", "all"] = runtime("all")
    """What `raylm serve` starts; a Serve config file says it by its import_path."""
    reward: dict[str, RewardSource] = Field({})
    """Reward models by name; the first is the default."""
    retriever: dict[str, RetrieverSource] = Field({})
    """Retrievers by name; the first is the default."""
    keys: tuple[Key, ...] = ()
    """Who may ask. None at all is for loopback only."""
    limits: Limits = Limits()
    batching: Batching = Batching()
    scaling: Scaling = Scaling()
    host: str = runtime("127.0.0.1")
    """Address that `raylm serve` listens on."""
    port: int = runtime(8000)
    """Port that `raylm serve` listens on."""
    haproxy: bool = runtime(False)
    """HAProxy in place of Serve's own proxy: more requests/s. They then listen on all addresses: it needs keys."""

    @model_validator(mode="after")
    def _coherent(self) -> ServeConfig:
        names = [*self.reward, *self.retriever]
        for name in names:
            if not NAME.fullmatch(name):
                raise ValueError(f"model name {name!r}: letters, digits, dot, dash and underscore, at most 64")
        if len(set(names)) < len(names):
            raise ValueError("a reward model and a retriever have the same name; rename one")
        if len({key.name for key in self.keys}) < len(self.keys):
            raise ValueError("keys: two have the same name; rename one")
        if not self.keys and (self.haproxy or not is_loopback(self.host)):
            raise ValueError(
                "keys: without any, only loopback is served; `raylm serve-token NAME` makes one, or host: 127.0.0.1"
            )
        return self
