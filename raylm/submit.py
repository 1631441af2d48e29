"""`raylm submit`: run a verb as a job on a Ray cluster, follow its log, and return its exit code.

A job runs `python -m jobs.VERB` with the checkout as its working directory. Its config is checked here first, so that a
mistake costs no upload. The same command submitted twice follows the job that is running instead of starting a second
one, which would write to the same directory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import stat
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from raylm import config as configs
from raylm.config import Config
from raylm.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STOPPED, LEFT_RUNNING = 143, 130
"""Exit codes of a job that was stopped, and of following one that goes on without us."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)
"""Loggers that name every file which does not travel."""
_POLL, _LOST = 0.5, 60.0
"""Seconds between two looks at a job, and without an answer until the cluster counts as lost."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is submitted where."""

    verb: str
    args: tuple[str, ...]
    """Config files and overrides, as for the verb itself."""
    address: str
    """Of the dashboard: http://HOST:8265."""
    token_file: str = ""
    """File with the cluster's token; empty takes RAY_AUTH_TOKEN_PATH, or Ray's own place."""
    working_dir: str = "."
    """Directory that travels to the cluster."""
    runtime_env: str = "cluster/runtime_env.yaml"
    """Its settings, below the working directory."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the job."""
    wait: bool = True
    """Follow the job to its end."""


def submit(request: Request, ask: Callable[[str], str] = input) -> int:
    """Submit a job, or find the same one running, and follow it; returns its exit code.

    Args:
        request: what and where.
        ask: asks whether to stop the job when Ctrl-C is pressed.

    Returns:
        the job's own exit code (0 done, 2 bad input, ...); STOPPED when it was stopped, LEFT_RUNNING when the following
        ended and the job did not.

    Raises:
        UserError: bad config; a config file or out directory that the cluster cannot see; no cluster at the address,
            or no or a wrong token for it.
    """
    entrypoint, name = prepare(request)
    authenticate(request)
    client = _connect(request.address)
    running = _same(client, name)
    if running:
        job = running
        print(f"job {job} does this already; following it", file=sys.stderr)
    else:
        job = _start(client, entrypoint=entrypoint, runtime_env=_runtime_env(request), metadata={"raylm": name})
        print(f"submitted {job}: {entrypoint}", file=sys.stderr)
    if not request.wait:
        print(job)
        return 0
    return follow(client, job, ask)


def _start(client: JobSubmissionClient, **job: Any) -> str:
    """Submit; the dashboard of a new cluster answers before the agent that starts jobs does.

    Raises:
        UserError: the agent did not come within a minute, or the cluster refused the job.
    """
    deadline = time.monotonic() + _LOST
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise UserError(f"the cluster refused the job: {_first_line(str(error))}") from error
            if time.monotonic() > deadline:
                raise UserError(
                    "the cluster answers, but the agent on its head that starts jobs does not; see dashboard_agent.log "
                    "in the head's log directory (a second cluster on one machine needs another "
                    "--dashboard-agent-listen-port)"
                ) from error
            time.sleep(_POLL)


def prepare(request: Request) -> tuple[str, str]:
    """Check a request without a cluster; returns the entry point, and a name that equal requests share.

    Raises:
        UserError: as `submit`.
    """
    from raylm.cli import VERBS

    if request.verb not in VERBS:
        raise UserError(f"submit: no verb {request.verb!r}; verbs are {', '.join(VERBS)}")
    verb, root = VERBS[request.verb], Path(request.working_dir).resolve()
    resolved: Any = verb.load(request.args)
    word = verb.word and request.args and not any(mark in request.args[0] for mark in "=./")
    args = [
        arg if "=" in arg or (word and place == 0) else _inside(arg, root) for place, arg in enumerate(request.args)
    ]
    _check_out(resolved)
    entrypoint = shlex.join(["python", "-m", f"jobs.{request.verb.replace('-', '_')}", *args])
    return entrypoint, f"{request.verb} {configs.config_hash(resolved)} {resolved.out}"


def authenticate(request: Request) -> None:
    """Choose the token for Ray's clients in this process, which read it from the environment.

    Raises:
        UserError: there is no such file, or others can read it.
    """
    if urlsplit(request.address).scheme not in ("http", "https"):
        raise UserError(f"--address {request.address}: give the dashboard's address, such as http://127.0.0.1:8265")
    host = urlsplit(request.address).hostname or ""
    if host not in _LOOPBACK and urlsplit(request.address).scheme != "https":
        print(
            f"warning: {request.address} is not encrypted, so token and code can be read on the way; use https, or "
            "a tunnel (ssh -L 8265:localhost:8265, kubectl port-forward) and http://127.0.0.1:8265",
            file=sys.stderr,
        )
    file = request.token_file or os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if not file:
        if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE"):
            return
        from raylm.units import own_token

        own = own_token()
        if own is None:
            return
        file = str(own)
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(
            f"{file}: no such token file; copy the cluster's token there, or name another with --token-file"
        )
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"{file}: others can read this token, and with it run code on the cluster; chmod 600 {file}")
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)})


def follow(client: JobSubmissionClient, job: str, ask: Callable[[str], str] = input) -> int:
    """Print a job's log as it comes, until it ends; on Ctrl-C ask whether to stop it.

    Raises:
        UserError: the cluster has not answered for a minute.
    """
    log, lost = _Log(), 0.0
    while True:
        try:
            while str(client.get_job_status(job)) not in _ENDED:
                asyncio.run(log.tail(client, job))
                lost = 0.0
                time.sleep(_POLL)
            asyncio.run(log.tail(client, job))
            return _exit_code(client, job)
        except OSError as error:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > _LOST:
                raise UserError(f"{job}: the cluster does not answer any more ({_first_line(str(error))})") from None
            time.sleep(_POLL)
        except KeyboardInterrupt:
            if not _wants_stop(job, ask):
                print(f"{job} goes on; the same command follows it again", file=sys.stderr)
                return LEFT_RUNNING
            client.stop_job(job)
            print(f"stopping {job}", file=sys.stderr)


class _Log:
    """What was printed of a log. A connection that broke begins again with the first line."""

    def __init__(self) -> None:
        self.shown = 0

    async def tail(self, client: JobSubmissionClient, job: str) -> None:
        """Print what is new until the job ends, or the connection does."""
        seen = 0
        try:
            async for chunk in client.tail_job_logs(job):
                new = chunk[max(0, self.shown - seen) :]
                seen += len(chunk)
                if new:
                    print(new, end="", flush=True)
                self.shown = max(self.shown, seen)
        except Exception as error:
            if not isinstance(error, RuntimeError | OSError) and not type(error).__module__.startswith("aiohttp"):
                raise  # Ray's client lets the errors of its own one through
            print(f"the log's connection broke ({_first_line(str(error))}); connecting again", file=sys.stderr)


def _exit_code(client: JobSubmissionClient, job: str) -> int:
    """Exit code of a job that has ended."""
    details = client.get_job_info(job)
    status = str(details.status)
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return STOPPED
    code = details.driver_exit_code
    if code is None:
        print(f"error: {job} failed before its code ran: {details.message}", file=sys.stderr)
    return code or 1


def _wants_stop(job: str, ask: Callable[[str], str]) -> bool:
    if not sys.stdin.isatty() and ask is input:
        return False
    try:
        return ask(f"\nStop {job} on the cluster as well? [y/N] ").strip().lower() in ("y", "yes")
    except (KeyboardInterrupt, EOFError):
        return False


def _connect(address: str) -> JobSubmissionClient:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        client = JobSubmissionClient(address)
        client.list_jobs()
    except ConnectionError as error:
        raise UserError(f"--address {address}: no Ray dashboard answers there ({error}); is the cluster up?") from None
    except AuthenticationError as error:
        raise UserError(
            f"--address {address}: the cluster refuses the token ({_first_line(str(error))}); copy that of its head "
            "(RAY_AUTH_TOKEN_PATH there, or ~/.ray/auth_token) and name the file with --token-file"
        ) from None
    return client


def _same(client: JobSubmissionClient, name: str) -> str:
    """Id of a job that does the same and has not ended."""
    for details in client.list_jobs():
        if (details.metadata or {}).get("raylm") == name and str(details.status) not in _ENDED:
            return details.submission_id or ""
    return ""


def _runtime_env(request: Request) -> dict[str, Any]:
    file = Path(request.working_dir, request.runtime_env)
    if not file.is_file():
        raise UserError(f"{file}: no such file; submit from a checkout, or name its working directory and runtime env")
    settings = yaml.safe_load(file.read_text()) or {}
    return {
        **settings,
        "working_dir": str(Path(request.working_dir).resolve()),
        "env_vars": {**settings.get("env_vars", {}), **request.env},
    }


def _inside(arg: str, root: Path) -> str:
    """Path of a config file below the working directory."""
    file = Path(arg).resolve()
    if not file.is_file():
        raise UserError(f"{arg}: no such config file (overrides are written key=value)")
    if not file.is_relative_to(root):
        raise UserError(f"{arg}: lies outside the working directory {root}, so it does not travel; copy it there")
    return str(file.relative_to(root))


def _check_out(resolved: Config) -> None:
    out = getattr(resolved, "out", "")
    if "://" not in out and not os.path.isabs(out):
        raise UserError(
            f"out={out} is relative: on the cluster that is the job's own copy of the working directory, which goes "
            "when the job ends; give a URL (s3://...) or the absolute path of a disk that all nodes share"
        )


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:200]


def parse_env(items: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE items as a mapping.

    Raises:
        UserError: an item has no `=`.
    """
    bad = next((item for item in items if "=" not in item), None)
    if bad is not None:
        raise UserError(f"--env {bad}: write NAME=VALUE")
    return dict(item.split("=", 1) for item in items)
