"""Bad input over HTTP: the right status, a body that says what to do, and nothing of another key."""

import json

import pytest

GOOD = {"prompt": "red", "responses": "one"}


def error(answer):
    return answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"nan",
        b'{"prompt": NaN, "responses": "one"}',
        b"\xff\xfe\x00",
        b'{"prompt": "\xff", "responses": "one"}',
        b'{"prompt": "\\ud800", "responses": "one"}',
        b'{"prompt": "red", "responses": ["one", "\\udfff"]}',
        b'{"prompt": ' + b"9" * 6000 + b', "responses": "one"}',
        b'{"prompt": ' + b"[" * 9000 + b"]" * 9000 + b', "responses": "one"}',
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
    ],
)
@pytest.mark.parametrize("path", ["/v1/score", "/v1/embeddings", "/v1/search", "/v1/rerank", "/v1/documents"])
def test_malformed_bodies(client, path, body):
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert error(answer)["type"] == "invalid_request_error"
    assert len(answer.content) < 1500


def test_surrogates_in_ids_and_texts(client):
    for document in ('{"id": "\\ud800", "text": "one"}', '{"id": "x", "text": "\\ud800"}'):
        body = f'{{"documents": [{document}]}}'
        answer = client.post("/v1/documents", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400


def test_odd_but_legal_texts_are_served(client):
    for text in ("\x00", "\u202e red", "👩‍👩‍👧", "a" * 4000, "红色", "ﷺ" * 40):
        answer = client.post("/v1/score", json={"prompt": text, "responses": text})
        assert answer.status_code in (200, 400), text
        assert client.post("/v1/embeddings", json={"input": text}).status_code == 200
        assert client.post("/v1/search", json={"query": text, "mode": "hybrid"}).status_code == 200


def test_too_much_at_once(client):
    many = client.post("/v1/score", json={"prompt": "red", "responses": ["one"] * 17})
    assert (many.status_code, error(many)["code"]) == (413, "too_many_texts")
    long = client.post("/v1/search", json={"query": "x" * 5001})
    assert (long.status_code, error(long)["code"]) == (413, "text_too_long")
    large = client.post("/v1/score", content=b"x" * 10_000_000)
    assert (large.status_code, error(large)["code"]) == (413, "body_too_large")
    assert client.post("/v1/search", json={"query": "x", "k": 10**30}).status_code == 400


@pytest.mark.parametrize(
    "path", ["/v1/../etc/passwd", "/page.js/../../config.py", "/%2e%2e/etc/passwd", "/v1", "/static/x"]
)
def test_there_is_nothing_beyond_the_routes(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert error(answer)["code"] == "not_found"


def test_another_method(client):
    answer = client.get("/v1/score")
    assert (answer.status_code, error(answer)["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_every_route_needs_a_token_but_the_page_and_the_probes(locked, as_user):
    for path in (
        "/v1/score",
        "/v1/compare",
        "/v1/embeddings",
        "/v1/search",
        "/v1/rerank",
        "/v1/documents",
        "/v1/models",
    ):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = locked.request("GET" if path == "/v1/models" else "POST", path, json=GOOD, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
    assert locked.get("/metrics").status_code == 401
    assert [locked.get(path).status_code for path in ("/", "/page.js", "/healthz", "/readyz", "/docs")] == [200] * 5
    assert locked.post("/v1/score", json=GOOD, headers=as_user("alice")).status_code == 200


def test_models_of_other_keys_do_not_exist(locked, as_user):
    bob, alice = as_user("bob"), as_user("alice")
    listed = locked.get("/v1/models", headers=bob).json()["data"]
    assert [model["id"] for model in listed] == ["second"]
    assert locked.post("/v1/score", json=GOOD, headers=bob).json()["model"] == "second"
    hidden = locked.post("/v1/score", json={**GOOD, "model": "first"}, headers=bob)
    unknown = locked.post("/v1/score", json={**GOOD, "model": "nothing"}, headers=bob)
    assert hidden.status_code == unknown.status_code == 404
    assert error(hidden)["message"] == error(unknown)["message"]
    assert "first" not in hidden.text
    assert locked.post("/v1/search", json={"query": "red"}, headers=bob).status_code == 404
    assert locked.post("/v1/search", json={"query": "red"}, headers=alice).status_code == 200


def test_only_keys_that_may_write_do(make_app, settings, keys, as_user):
    from starlette.testclient import TestClient

    readers = [{**key, "models": ["*"], "write": key["name"] == "alice"} for key in keys]
    document = {"documents": [{"id": "w", "text": "four"}]}
    with TestClient(make_app({**settings, "keys": readers})) as client:
        refused = client.post("/v1/documents", json=document, headers=as_user("bob"))
        assert (refused.status_code, error(refused)["code"]) == (403, "read_only_key")
        assert client.delete("/v1/documents/red", headers=as_user("bob")).status_code == 403
        assert client.post("/v1/documents", json=document, headers=as_user("alice")).status_code == 200
        assert client.delete("/v1/documents/w", headers=as_user("alice")).status_code == 200


def test_values_of_a_request_are_not_sent_back(client):
    answer = client.post("/v1/score", json={"prompt": {"secret": "my password"}, "responses": "one"})
    assert answer.status_code == 400
    assert "my password" not in answer.text


def test_a_bad_text_spoils_no_other_request(client):
    """Requests of one batch, one of which the model refuses."""
    from concurrent.futures import ThreadPoolExecutor

    bodies = [{"prompt": "red", "responses": " " if place % 3 == 0 else "one"} for place in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda body: client.post("/v1/score", json=body), bodies))
    assert [answer.status_code for answer in answers] == [400 if place % 3 == 0 else 200 for place in range(12)]
    scores = {json.dumps(answer.json()["data"][0]["score"]) for answer in answers if answer.status_code == 200}
    assert len({round(float(score), 5) for score in scores}) == 1
