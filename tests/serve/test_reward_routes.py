"""Scores over HTTP are the library's own."""

import math

import pytest

from raylm.srm.model import RewardModel

RESPONSES = ["red is one", "green", "blue is three a four"]


@pytest.fixture(scope="module")
def model(served_models):
    return RewardModel.load(served_models / "first")


def test_scores_are_those_of_the_library(client, model):
    answer = client.post("/v1/score", json={"prompt": "which is red", "responses": RESPONSES})
    assert answer.status_code == 200
    said = answer.json()
    assert (said["object"], said["model"], said["revision"]) == ("list", "first", model.revision)
    for place, (item, score) in enumerate(zip(said["data"], model.score("which is red", RESPONSES), strict=True)):
        assert item["index"] == place
        assert item["score"] == pytest.approx(score.score, abs=1e-5)
        assert item["probability"] == pytest.approx(model.probability(score.score), abs=1e-6)
        assert item["dimensions"] == pytest.approx(score.dimensions, abs=1e-5)
        assert item["attribution"] == pytest.approx(score.attribution, abs=1e-5)
        assert sum(item["attribution"].values()) + model.bias == pytest.approx(item["score"], abs=1e-5)


def test_one_response_may_stand_for_itself_and_a_prompt_may_be_a_chat(client, model):
    chat = [{"role": "user", "content": "which is red"}]
    said = client.post("/v1/score", json={"prompt": chat, "responses": "red is one"}).json()
    assert said["data"][0]["score"] == pytest.approx(model.score(chat, ["red is one"])[0].score, abs=1e-5)


def test_a_model_is_chosen_by_name(client, served_models):
    said = client.post("/v1/score", json={"model": "second", "prompt": "red", "responses": "one"}).json()
    other = RewardModel.load(served_models / "second")
    assert said["revision"] == other.revision
    assert said["data"][0]["score"] == pytest.approx(other.score("red", ["one"])[0].score, abs=1e-5)


def test_what_was_cut_is_said_and_counted(client):
    item = client.post("/v1/score", json={"prompt": "red", "responses": "two " * 60}).json()["data"][0]
    assert item["truncated"]
    assert "response_truncated" in item["flags"]
    assert 'raylm_serve_truncated_total{model="first"}' in client.get("/metrics").text


def test_a_comparison_says_who_wins_and_by_which_dimension(client):
    body = {"prompt": "which is red", "response_a": RESPONSES[0], "response_b": RESPONSES[1]}
    said = client.post("/v1/compare", json=body).json()
    scores = client.post("/v1/score", json={"prompt": "which is red", "responses": RESPONSES[:2]}).json()["data"]
    margin = scores[0]["score"] - scores[1]["score"]
    assert said["margin"] == pytest.approx(margin, abs=1e-5)
    assert said["winner"] == ("a" if margin > 0 else "b")
    assert said["probability"] == pytest.approx(1 / (1 + math.exp(-margin)), abs=1e-6)
    assert sum(said["reasons"].values()) == pytest.approx(margin, abs=1e-5)
    sizes = [abs(value) for value in said["reasons"].values()]
    assert sizes == sorted(sizes, reverse=True)
    swapped = client.post("/v1/compare", json={**body, "response_a": RESPONSES[1], "response_b": RESPONSES[0]}).json()
    assert swapped["probability"] == pytest.approx(1 - said["probability"], abs=1e-6)
    same = client.post("/v1/compare", json={**body, "response_b": RESPONSES[0]}).json()
    assert (same["winner"], same["probability"]) == ("tie", 0.5)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"responses": "one"}, "prompt"),
        ({"prompt": "red"}, "responses"),
        ({"prompt": "", "responses": "one"}, "prompt"),
        ({"prompt": "red", "responses": []}, "responses"),
        ({"prompt": "red", "responses": ["one", 7]}, "responses"),
        ({"prompt": 10**400, "responses": "one"}, "prompt"),
        ({"prompt": "red", "responses": "one", "respones": "two"}, "respones"),
        ({"prompt": [{"role": "judge", "content": "red"}], "responses": "one"}, "prompt"),
    ],
)
def test_a_wrong_field_is_named(client, body, field):
    answer = client.post("/v1/score", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert field in error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("blank", [{"prompt": " ", "responses": "one"}, {"prompt": "red", "responses": ["one", "\n"]}])
def test_blank_texts_are_refused_by_the_model(client, blank):
    answer = client.post("/v1/score", json=blank)
    assert answer.status_code == 400
    assert "empty" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["third", "../first", "..%2Ffirst", "/etc/passwd", "first/../../etc"])
def test_a_name_is_never_a_path(client, name):
    answer = client.post("/v1/score", json={"model": name, "prompt": "red", "responses": "one"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "first, second" in answer.json()["error"]["message"]
