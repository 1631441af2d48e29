"""Clients as users have them: the openai package, a browser, a fuzzer that reads the OpenAPI document."""

import asyncio
import contextlib
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import openai
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as settings_of
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from raylm.errors import EngineDied
from raylm.llm import reward
from raylm.retrieval.encoder import Encoder

PAGE = Path(__file__).parent.parent.parent / "raylm/serve/page"
TOKEN = "token-of-alice"


@contextlib.contextmanager
def serving(app):
    """Address at which a real server answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def address(make_app, settings, keys):
    """Of a server with keys."""
    with serving(make_app({**settings, "keys": keys})) as address:
        yield address


def test_the_openai_client_gets_vectors(address, served_models):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=0)
    texts = ["red is one", "the blue"]
    said = client.embeddings.create(model="docs", input=texts)  # asks for base64 by itself
    expected = Encoder.load(str(served_models / "encoder")).encode(texts)
    np.testing.assert_allclose([item.embedding for item in said.data], expected, atol=1e-6)
    assert said.usage.prompt_tokens > 0
    assert [model.id for model in client.models.list()] == ["first", "second", "docs", "bare"]
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.embeddings.create(model="gpt", input="red")
    with pytest.raises(openai.BadRequestError, match="tokens are refused"):
        client.embeddings.create(model="docs", input=[1, 2])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()


def test_the_search_asks_a_served_model_as_it_asks_a_local_one(address, served_models, monkeypatch):
    monkeypatch.setenv("RAYLM_REWARD_TOKEN", TOKEN)
    local = asyncio.run(reward.build(str(served_models / "first")))
    served = asyncio.run(reward.build(f"{address}/v1/score"))
    assert isinstance(served, reward.ServedReward)
    for response in ("red is one", "green", " "):
        expected = asyncio.run(local.score("which is red", response))
        assert asyncio.run(served.score("which is red", response)) == pytest.approx(expected, abs=1e-6)
    for model in (local, served):
        with pytest.raises(ValueError, match="does not fit"):
            asyncio.run(model.score("which is red", "two " * 60))
    monkeypatch.setenv("RAYLM_REWARD_TOKEN", "wrong")
    with pytest.raises(EngineDied, match="401: the token is not known"):
        asyncio.run(served.score("which is red", "one"))


def test_the_page_names_what_it_needs_and_loads_nothing_else(address):
    page = httpx.get(f"{address}/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    used = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(used) == ["data:,", "docs", "page.css", "page.js"]
    assert [httpx.get(f"{address}/{name}").status_code for name in ("page.css", "page.js")] == [200, 200]
    script, paths = (PAGE / "page.js").read_text(), httpx.get(f"{address}/openapi.json").json()["paths"]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    asked = set(re.findall(r'byId\("(\w+)"\)', script))
    assert asked <= set(re.findall(r'id="(\w+)"', page.text))
    assert set(re.findall(r'"(v1/\w+)"', script)) <= {path[1:] for path in paths}


def browsers():
    return [name for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if shutil.which(name)][:1]


@pytest.mark.parametrize("browser", browsers())
def test_a_browser_scores_a_pair_and_searches(browser, make_app, settings, tmp_path):
    """The page's links fill the forms and send them; what the browser then shows is read."""
    script = "<img src=x onerror=document.title='broken'>"
    link = f"/#prompt=red&a=one+two&b={quote(script)}&query=three&mode=bm25"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=20000",
    ]
    with serving(make_app(settings)) as address:
        command = [browser, *options, f"--user-data-dir={tmp_path}", "--dump-dom", address + link]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True).stdout
    assert re.search(r"<b class=.[ab].>[AB]</b> is better, with probability \d+\.\d%", shown)
    assert shown.count("<rect") == 4  # two dimensions of two responses
    assert ">quality</text>" in re.sub(r"<title>.*?</title>", "", shown)
    assert "blue is three" in shown
    assert "<title>raylm</title>" in shown


@pytest.mark.parametrize("browser", browsers())
def test_a_browser_shows_the_api_with_nothing_from_elsewhere(browser, make_app, settings, tmp_path):
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    with serving(make_app(settings)) as address:
        command = [browser, *options, f"--user-data-dir={tmp_path}", "--dump-dom", f"{address}/docs"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True).stdout
        paths = httpx.get(f"{address}/openapi.json").json()["paths"]
        assert "default-src 'self'" in httpx.get(f"{address}/docs").headers["content-security-policy"]
    assert all(f" {path}</code>" in shown for path in paths)
    assert "encoding_format" in shown


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_a_fuzzer_finds_no_fault(address, mode):
    """Every route gets generated requests, legal and not: no 5xx, and every answer is as the document says."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    wanted = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    calm = settings_of(
        max_examples=6, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    routes = [found.ok() for found in schema.get_all_operations()]
    assert len(routes) == 12
    if mode == GenerationMode.NEGATIVE:
        routes = [route for route in routes if route.method != "get"]  # nothing can be wrong with those
    for route in routes:

        @calm
        @given(route.as_strategy(generation_mode=mode))
        def ask(case):
            case.call_and_validate(checks=wanted, headers={"Authorization": f"Bearer {TOKEN}"})

        ask()
