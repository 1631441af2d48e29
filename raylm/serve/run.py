"""`raylm serve`: start Ray Serve on this machine, or on the cluster of RAY_ADDRESS, and stay until interrupted."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

from raylm.errors import UserError
from raylm.serve.config import ServeConfig


def run(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM, then answer what is in flight and stop.

    Raises:
        UserError: the port is taken, a model cannot be loaded, or keys are missing.
    """
    if config.haproxy:
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"  # read when Serve is imported
    from raylm.serve import app

    kinds = app.KINDS if config.app == "all" else (config.app,)
    app.check(config, kinds)
    _check_models(config, kinds)
    _check_port(config.host, config.port)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    _start_ray(config, len(kinds))

    import ray
    from ray import serve

    try:
        serve.start(http_options=http_options(config), proxy_location="HeadOnly")
        built = {"reward": app.build_reward, "retriever": app.build_retriever, "all": app.build_all}[config.app](config)
        serve.run(built, name="raylm", route_prefix="/")
        models = ", ".join(name for kind in kinds for name in getattr(config, kind))
        print(f"serving {models} at http://{config.host}:{config.port}/ (page), /docs (API); Ctrl-C stops", flush=True)
        stop.wait()
        print("stopping: requests in flight are answered first", file=sys.stderr, flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()


def http_options(config: ServeConfig) -> dict[str, object]:
    """For `serve.start`: the proxy waits a little longer than the replicas, whose errors say more."""
    return {"host": config.host, "port": config.port, "request_timeout_s": config.limits.request_seconds + 15}


def token(name: str) -> None:
    """Print a new bearer token and the entry of its key."""
    from raylm import config
    from raylm.serve.auth import new_token

    made, key = new_token(name)
    print(f"token, shown only now: {made}\nfor the config:\nkeys:")
    print(
        "".join(f"{'- ' if n == 0 else '  '}{line}\n" for n, line in enumerate(config.to_yaml(key).splitlines())),
        end="",
    )


def _check_models(config: ServeConfig, kinds: tuple[str, ...]) -> None:
    from raylm.serve import retriever, reward

    if "reward" in kinds:
        reward.sources(config.reward, 1, 0)
    if "retriever" in kinds:
        retriever.sources(config.retriever, 1, 0)


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"host={host} port={port}: cannot listen there ({error}); choose another") from None


def _start_ray(config: ServeConfig, kinds: int) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level="warning")
        return
    needed = int(-(-config.scaling.max_replicas * config.scaling.cpus * kinds // 1))
    cpus = max(os.cpu_count() or 1, needed)  # a replica that gets no CPU would wait for ever
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, logging_level="warning")
