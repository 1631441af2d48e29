"""The served application on tiny models, in this process, without Ray."""

import pytest
from starlette.testclient import TestClient

from raylm.config import build
from raylm.serve import retriever, reward
from raylm.serve.auth import digest
from raylm.serve.config import ServeConfig
from raylm.serve.metrics import Metrics
from raylm.serve.routes import Served, create_app

LOCAL = ("127.0.0.1", 50000)
TOKENS = {"alice": "token-of-alice", "bob": "token-of-bob"}


@pytest.fixture(scope="session")
def settings(served_models, tmp_path_factory):
    """Plain data of a config: two reward models, a retriever to write to, and one without documents."""
    return {
        "reward": {name: {"path": str(served_models / name)} for name in ("first", "second")},
        "retriever": {
            "docs": {
                "encoder": str(served_models / "encoder"),
                "index": str(served_models / "index"),
                "journal": str(tmp_path_factory.mktemp("journal")),
            },
            "bare": {"encoder": str(served_models / "plain")},
        },
        "limits": {"body_bytes": 20_000, "texts": 16, "text_chars": 5000, "top_k": 50},
    }


@pytest.fixture(scope="session")
def keys():
    """Alice may do everything; Bob may only use `second`."""
    limited = {"bob": {"models": ["second"]}, "alice": {"write": True}}
    return [{"name": name, "sha256": digest(token.encode()), **limited[name]} for name, token in TOKENS.items()]


@pytest.fixture(scope="session")
def make_app():
    """A function that makes the application of a config's plain data."""

    def make(data):
        config, metrics = build(ServeConfig, data), Metrics()
        services = (
            reward.RewardService(reward.sources(config.reward, 1, 0), metrics),
            retriever.RetrieverService(retriever.sources(config.retriever, 1, 0), metrics),
        )
        for service in services:
            service.start()
        return create_app(Served(config, metrics, *services))

    return make


@pytest.fixture(scope="session")
def client(make_app, settings):
    """A client of a server without keys, on the same machine."""
    with TestClient(make_app(settings), client=LOCAL) as client:
        yield client


@pytest.fixture(scope="session")
def locked(make_app, settings, keys):
    """A client of a server with keys; it sends none by itself."""
    with TestClient(make_app({**settings, "keys": keys})) as client:
        yield client


@pytest.fixture
def as_user():
    """Headers of a user by name."""
    return lambda name: {"Authorization": f"Bearer {TOKENS[name]}"}
