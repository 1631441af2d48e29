"""What the benchmark of serving measures: models, a bare FastAPI app, raylm's own server, and a fuzzer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.bench import load

ROOT = Path(__file__).parent.parent.parent
START_SECONDS = 600


def reward_model(folder: Path) -> Path:
    """A reward model on all-MiniLM-L6-v2 with the five default branches, its own weights random."""
    import torch

    from raylm.llm import models
    from raylm.srm import backbone
    from raylm.srm.config import DEFAULT_BRANCHES, FusionConfig
    from raylm.srm.model import RewardModel
    from raylm.srm.structure import Structure

    torch.manual_seed(0)
    body = backbone.load(models.resolve_encoder("all-minilm-l6-v2").path, max_length=256)
    structure = Structure(body, DEFAULT_BRANCHES, FusionConfig())
    with torch.no_grad():
        for value in [*structure.fusion.parameters(), *structure.trained.parameters()]:
            value.normal_(0, 0.3)
    RewardModel(structure, "minilm", "").save(folder / "reward")
    return folder / "reward"


def index(folder: Path, documents: int = 200) -> Path:
    """An index of random documents, by all-MiniLM-L6-v2."""
    from raylm.retrieval.encoder import Encoder
    from raylm.retrieval.index import Index, Source

    encoder = Encoder.load()
    texts = [f"{response} base{number}" for number, (_, response) in enumerate(load.pairs(documents, seed=1))]
    ids = [f"base-{number}" for number in range(documents)]
    made = Index.build(ids, texts, encoder.encode(texts), source=Source("all-minilm-l6-v2", encoder.hash))
    made.save(str(folder / "index"))
    return folder / "index"


@contextlib.contextmanager
def bare(model: Path) -> Iterator[str]:
    """A FastAPI app as one would write it in ten minutes, on uvicorn: one forward pass for each request."""
    port = free_port()
    with _process([sys.executable, "-m", "jobs.bench.serve_setup", str(model), str(port)], {}) as process:
        wait(f"http://127.0.0.1:{port}/healthz", process)
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def served(
    what: str, folder: Path, model: Path, *, haproxy: bool, replicas: int = 1, cpus: int = 1, **more: Any
) -> Iterator[tuple[str, str]]:
    """Address and token of `raylm serve`, all in processes of its own."""
    from raylm.serve.auth import new_token

    token, key = new_token("bench")
    port = free_port()
    config = {
        "reward": {"reward": {"path": str(model)}},
        "keys": [key.model_dump() | {"write": True}],
        "port": port,
        "haproxy": haproxy,
        "scaling": {"min_replicas": replicas, "max_replicas": replicas, "cpus": cpus},
        **more,
    }
    file = folder / f"{what}.yaml"
    file.write_text(json.dumps(config))
    with _process([sys.executable, "-m", "jobs.serve", what, str(file)], {}) as process:
        wait(f"http://127.0.0.1:{port}/readyz", process)
        yield f"http://127.0.0.1:{port}", token


def fuzz(address: str, token: str, examples: int = 40) -> dict[str, int]:
    """Generated requests to every route, legal and not; counts 5xx, and answers that are not as the document says."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi import checks

    wanted = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
    counts = {"requests": 0, "fuzz_5xx": 0, "violations": 0}
    calm = settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    for mode in GenerationMode:
        for found in schemathesis.openapi.from_url(f"{address}/openapi.json").get_all_operations():
            route = found.ok()
            if mode == GenerationMode.NEGATIVE and route.method == "get":
                continue

            @calm
            @given(route.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                answer = case.call(headers={"Authorization": f"Bearer {token}"})
                counts["requests"] += 1
                counts["fuzz_5xx"] += answer.status_code >= 500
                try:
                    case.validate_response(answer, checks=wanted)
                except AssertionError as error:
                    counts["violations"] += 1
                    print(error, file=sys.stderr)
                except schemathesis.core.failures.FailureGroup as error:
                    counts["violations"] += 1
                    print(error.exceptions, file=sys.stderr)

            ask()
    return counts


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(address: str, process: subprocess.Popen[bytes]) -> None:
    """Until an address answers 200.

    Raises:
        RuntimeError: the server ended, or did not come up.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}")
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.5)
    raise RuntimeError(f"{address} did not come up in {START_SECONDS} s")


@contextlib.contextmanager
def _process(command: list[str], more: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=180)


def _bare_app(model: str) -> Any:
    import torch
    from fastapi import FastAPI
    from pydantic import BaseModel

    from raylm.srm.model import RewardModel

    torch.set_num_threads(1)
    reward, app = RewardModel.load(model), FastAPI()

    class Body(BaseModel):
        prompt: str
        responses: str

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    def score(body: Body) -> dict[str, Any]:
        found = reward.score(body.prompt, [body.responses])[0]
        item = {"score": found.score, "dimensions": found.dimensions, "attribution": found.attribution}
        return {"data": [item], "truncated": found.truncated}

    score.__annotations__["body"] = Body  # a local class, which FastAPI cannot find by its name
    app.post("/v1/score")(score)
    return app


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(_bare_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
