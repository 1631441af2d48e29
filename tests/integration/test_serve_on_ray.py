"""Serving on real Ray: models change and replicas die under load, and no answer is wrong and no document lost."""

import concurrent.futures
import contextlib
import os
import shutil
import signal
import socket
import threading
import time

import httpx
import psutil
import pytest

from raylm.config import build
from raylm.errors import UserError
from raylm.serve import app
from raylm.serve.auth import digest
from raylm.serve.config import ServeConfig
from raylm.srm.model import RewardModel

TOKEN = {"Authorization": "Bearer a-token"}
KEYS = [{"name": "tests", "sha256": digest(b"a-token"), "write": True}]
PAIR = {"prompt": "which is red", "responses": ["red is one"]}


@pytest.fixture(scope="module")
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def serve(ray_cluster, port):
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 60})
    yield serve
    serve.shutdown()


@pytest.fixture(scope="module")
def folder(served_models, tmp_path_factory):
    """Copies of the models that a test may spoil."""
    place = tmp_path_factory.mktemp("models")
    for name in ("first", "second", "encoder", "index"):
        shutil.copytree(served_models / name, place / name)
    return place


@pytest.fixture(scope="module")
def settings(folder):
    return {
        "reward": {"reward": {"path": str(folder / "first")}},
        "retriever": {
            "docs": {
                "encoder": str(folder / "encoder"),
                "index": str(folder / "index"),
                "journal": str(folder / "journal"),
                "mode": "bm25",
            }
        },
        "keys": KEYS,
        "scaling": {"cpus": 0.5, "watch_seconds": 0.5},
        "limits": {"in_flight": 8, "request_seconds": 40},
    }


@pytest.fixture(scope="module")
def client(serve, settings, port):
    serve.run(app.build_all(build(ServeConfig, settings)), name="raylm", route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=TOKEN, timeout=90) as client:
        yield client


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def replicas(name=""):
    """Processes of Serve's replicas, below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            found += [process] if "ServeReplica" in line and name in line else []
    return found


@contextlib.contextmanager
def asking(client, body):
    """Scores asked for without a pause meanwhile: (status, revision, score) of each answer."""
    answers, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            answer = client.post("/v1/score", json=body)
            said = answer.json() if answer.status_code == 200 else {}
            answers.append((answer.status_code, said.get("revision"), (said.get("data") or [{}])[0].get("score")))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()


def check(answers, *models):
    """Every answer is right, by the model whose revision it names."""
    known = {model.revision: model.score(PAIR["prompt"], PAIR["responses"])[0].score for model in models}
    assert {status for status, *_ in answers} == {200}
    for _, revision, score in answers:
        assert score == pytest.approx(known[revision], abs=1e-4)


def test_the_gateway_answers_for_both_kinds(client, folder):
    model = RewardModel.load(folder / "first")
    said = client.post("/v1/score", json=PAIR).json()
    expected = model.score(PAIR["prompt"], PAIR["responses"])[0]
    assert said["data"][0]["score"] == pytest.approx(expected.score, abs=1e-5)
    hits = client.post("/v1/search", json={"query": "three"}).json()["data"][0]["hits"]
    assert [hit["id"] for hit in hits] == ["blue"]
    assert [item["id"] for item in client.get("/v1/models").json()["data"]] == ["reward", "docs"]
    assert client.get("/readyz").status_code == 200
    assert client.post("/v1/score", json=PAIR, headers={"Authorization": ""}).status_code == 401
    refused = client.post("/v1/score", json={"prompt": "red", "responses": " "})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_text")
    answer = client.post("/v1/score", json=PAIR, headers={"X-Request-Id": "mine-1"})
    assert answer.headers.get_list("x-request-id") == ["mine-1"]


def test_what_the_proxy_lets_through_is_refused_by_the_replica(client, port):
    large = client.post("/v1/score", content=b"x" * 10_000_000)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
    many = {f"x-{number}": "y" * 200 for number in range(99)}
    assert client.post("/v1/score", json=PAIR, headers=many).status_code == 431
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        raw.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: nonsense\r\n\r\n")
        assert b" 400 " in raw.recv(4096).split(b"\r\n")[0]
    assert client.post("/v1/score", json=PAIR).status_code == 200


def test_new_files_are_served_without_a_failed_request_and_damaged_ones_are_not(client, folder):
    first, second = RewardModel.load(folder / "first"), RewardModel.load(folder / "second")
    with asking(client, PAIR) as answers:
        shutil.copytree(folder / "second", folder / "new")
        (folder / "first").rename(folder / "old")
        (folder / "new").rename(folder / "first")
        until(lambda: answers and answers[-1][1] == second.revision)
        weights = folder / "first" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-64])
        until(lambda: client.get("/v1/models").json()["data"][0]["error"])
        said = client.get("/v1/models").json()["data"][0]
        assert said["revision"] == second.revision
        shutil.copy(folder / "second" / "model.safetensors", weights)
        until(lambda: client.get("/v1/models").json()["data"][0]["error"] is None)
    check(answers, first, second)


def test_deployed_again_with_another_model_nothing_fails(client, serve, settings, folder):
    changed = {
        **settings,
        "reward": {"reward": {"path": str(folder / "old")}, "other": {"path": str(folder / "second")}},
    }
    old, second = RewardModel.load(folder / "old"), RewardModel.load(folder / "second")
    with asking(client, PAIR) as answers:
        serve.run(app.build_all(build(ServeConfig, changed)), name="raylm", route_prefix="/")
        until(lambda: answers and answers[-1][1] == old.revision)
    check(answers, old, second)
    by_name = client.post("/v1/score", json={**PAIR, "model": "other"}).json()
    assert by_name["revision"] == second.revision


def test_replicas_of_other_settings_take_over_without_a_failed_request(client, serve, settings, folder):
    """Batches by Serve's clock in place of our own: every process is replaced, a new one before an old one goes."""
    changed = {
        **settings,
        "batching": {"kind": "clock", "wait_ms": 1},
        "reward": {"reward": {"path": str(folder / "old")}},
    }
    before = {process.pid for process in replicas()}
    with asking(client, PAIR) as answers:
        serve.run(app.build_all(build(ServeConfig, changed)), name="raylm", route_prefix="/")
        until(lambda: not before & {process.pid for process in replicas()})
        settled = len(answers)
        until(lambda: len(answers) > settled + 3)
    check(answers, RewardModel.load(folder / "old"))


def test_replicas_come_with_load_and_go_after_it_without_a_failed_request(client, serve, settings, folder):
    scaling = {"max_replicas": 2, "target_ongoing_requests": 1, "up_seconds": 1, "down_seconds": 3}
    changed = {
        **settings,
        "scaling": {**settings["scaling"], **scaling},
        "reward": {"reward": {"path": str(folder / "old")}},
    }
    serve.run(app.build_all(build(ServeConfig, changed)), name="raylm", route_prefix="/")
    until(lambda: len(replicas("Reward")) == 1)
    with asking(client, PAIR) as answers:
        with contextlib.ExitStack() as load:
            others = [load.enter_context(asking(client, PAIR)) for _ in range(5)]
            until(lambda: len(replicas("Reward")) == 2)
        until(lambda: len(replicas("Reward")) == 1)
        settled = len(answers)
        until(lambda: len(answers) > settled + 3)
    check([*answers, *(answer for other in others for answer in other)], RewardModel.load(folder / "old"))


def test_too_many_at_once_are_told_to_come_again_and_the_others_are_answered(client):
    """More than the gateway's `in_flight`: each gets its right score, or 429 with the seconds to wait."""
    body = {"prompt": "which is red", "responses": ["red is one"] * 100}
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/score", json=body), range(120)))
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["Retry-After"]) >= 1
            assert "error" in answer.json()
        else:
            assert len({row["score"] for row in answer.json()["data"]}) == 1
            assert len(answer.json()["data"]) == 100
    assert client.post("/v1/score", json=body).status_code == 200


def test_acknowledged_documents_survive_a_killed_replica(client):
    """Documents are written while the replica is killed; those that were acknowledged are all found afterwards."""
    written, failed, stop = [], [], threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            number += 1
            document = {"id": f"new-{number}", "text": f"four number {number}"}
            answer = client.post("/v1/documents", json={"documents": [document]})
            (written if answer.status_code == 200 else failed).append((document["id"], answer.status_code))

    thread = threading.Thread(target=write)
    thread.start()
    until(lambda: len(written) >= 5)
    victims = replicas("Retriever")
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    before = len(written)
    until(lambda: len(written) >= before + 5)
    stop.set()
    thread.join()
    assert victims
    assert {status for _, status in failed} <= {503, 504}
    hits = client.post("/v1/search", json={"query": "four", "k": 1000}).json()["data"][0]["hits"]
    assert {id for id, _ in written} <= {hit["id"] for hit in hits}


def test_without_keys_nothing_is_built_where_others_could_reach_it(settings, monkeypatch):
    open_to_all = build(ServeConfig, {**settings, "keys": []})
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(UserError, match="keys: there are none"):
        app.build_reward(open_to_all)
