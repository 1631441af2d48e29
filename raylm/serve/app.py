"""Ray Serve applications: `raylm.serve.app:build_reward`, `:build_retriever` and `:build_all`, by one `ServeConfig`.

A reward model or a retriever answers HTTP in its own replicas, so that a request crosses one process. `build_all` puts
a gateway before both, which then scale by themselves. Models come by `user_config`: deployed again with other models,
replicas load them while the old ones serve. Whatever else changes rolls over the replicas, a new one before an old one
goes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from raylm.errors import UserError
from raylm.serve.config import ServeConfig, is_loopback

if TYPE_CHECKING:
    from ray.serve import Application

KINDS = ("reward", "retriever")


def build_reward(config: ServeConfig) -> Application:
    """Serve reward models.

    Raises:
        UserError: the config names none, or Serve listens on more than loopback without keys.
    """
    return _alone(config, "reward")


def build_retriever(config: ServeConfig) -> Application:
    """Serve retrievers.

    Raises:
        UserError: the config names none, or Serve listens on more than loopback without keys.
    """
    return _alone(config, "retriever")


def build_all(config: ServeConfig) -> Application:
    """Serve reward models and retrievers behind one gateway.

    Raises:
        UserError: the config lacks one of them, or Serve listens on more than loopback without keys.
    """
    from ray import serve

    from raylm.serve.replica import Gateway, Replica

    check(config, KINDS)
    settings = _settings(config)
    parts = {}
    for kind in KINDS:
        options = _options(config, kind.title(), {kind: _models(config, kind)})
        parts[kind] = serve.deployment(Replica).options(**options).bind(settings, kind)
    models = {kind: _models(config, kind) for kind in KINDS}
    options = _options(config, "Gateway", models) | {"ray_actor_options": {"num_cpus": 0}}
    return serve.deployment(serve.ingress()(Gateway)).options(**options).bind(settings, **parts)


def check(config: ServeConfig, kinds: tuple[str, ...]) -> None:
    """Refuse a config before anything is deployed.

    Raises:
        UserError: a kind has no models, or whoever reaches this machine would be served.
    """
    for kind in kinds:
        if not getattr(config, kind):
            raise UserError(f"{kind}: no model is named; give {kind}: {{NAME: {{...}}}}")
    names = [*config.reward, *config.retriever]
    unknown = {name for key in config.keys for name in key.models} - {"*", *names}
    if unknown:
        raise UserError(f"keys: no model {sorted(unknown)[0]!r}; there are {', '.join(names)}")
    host = _listening()
    if not config.keys and host is not None and not is_loopback(host):
        raise UserError(
            f"keys: there are none, and Serve listens on {host}; `raylm serve-token NAME` makes one, or let Serve "
            "listen on 127.0.0.1 (http_options.host), without HAProxy"
        )


def _alone(config: ServeConfig, kind: str) -> Application:
    from ray import serve

    from raylm.serve.replica import HttpReplica

    check(config, (kind,))
    options = _options(config, kind.title(), {kind: _models(config, kind)})
    return serve.deployment(serve.ingress()(HttpReplica)).options(**options).bind(_settings(config), kind)


def _options(config: ServeConfig, name: str, models: dict[str, Any]) -> dict[str, Any]:
    from ray.serve.config import AutoscalingConfig, BackpressureConfig
    from ray.serve.schema import LoggingConfig

    scaling, limits = config.scaling, config.limits
    return {
        "name": name,
        "user_config": models,
        # More than `in_flight`, so that the replica itself refuses what is too much, in the form of its other errors.
        "max_ongoing_requests": limits.in_flight + 64,
        "max_queued_requests": 4 * limits.in_flight,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=1),
        "autoscaling_config": AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_ongoing_requests,
            upscale_delay_s=scaling.up_seconds,
            downscale_delay_s=scaling.down_seconds,
        ),
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        # A replica that goes answers what it has taken on, however late that may be; an idle one goes at once.
        "graceful_shutdown_timeout_s": limits.body_seconds + limits.request_seconds + 5,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_surge_percent": 100,
        "logging_config": LoggingConfig(enable_access_log=False),  # our own lines say more
        "ray_actor_options": {
            "num_cpus": scaling.cpus,
            "num_gpus": scaling.gpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(max(1, int(scaling.cpus)))}},
        },
    }


def _settings(config: ServeConfig) -> dict[str, Any]:
    """All but the models."""
    return config.model_dump(mode="json", exclude={"reward", "retriever"})


def _models(config: ServeConfig, kind: str) -> dict[str, Any]:
    return {name: item.model_dump(mode="json") for name, item in getattr(config, kind).items()}


def _listening() -> str | None:
    """The address that the running Serve listens on; None when it does not run yet."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        return "0.0.0.0"
    import ray

    if not ray.is_initialized():
        return None  # asking Serve would start one
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return client.http_config.host if client else None
