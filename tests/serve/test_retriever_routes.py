"""Vectors, search, rerank and documents over HTTP."""

import base64

import numpy as np
import pytest

from raylm.retrieval.encoder import Encoder
from raylm.srm.model import RewardModel

TEXTS = ["red is one", "which is the blue", "four"]


@pytest.fixture(scope="module")
def encoder(served_models):
    return Encoder.load(str(served_models / "encoder"))


def test_vectors_are_those_of_the_library_in_both_forms(client, encoder):
    expected = encoder.encode(TEXTS)
    said = client.post("/v1/embeddings", json={"model": "docs", "input": TEXTS}).json()
    assert [item["index"] for item in said["data"]] == [0, 1, 2]
    np.testing.assert_allclose([item["embedding"] for item in said["data"]], expected, atol=1e-6)
    packed = client.post("/v1/embeddings", json={"input": TEXTS, "encoding_format": "base64"}).json()
    found = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in packed["data"]]
    np.testing.assert_array_equal(found, np.float32([item["embedding"] for item in said["data"]]))
    assert said["usage"]["prompt_tokens"] == sum(map(len, encoder.tokens(TEXTS).ids))
    assert said["revision"] == encoder.hash
    assert said["truncated"] == 0


def test_one_text_own_dimensions_and_cut_texts(client, encoder):
    said = client.post("/v1/embeddings", json={"input": "two " * 60, "dimensions": encoder.dimension}).json()
    assert len(said["data"]) == 1
    assert said["truncated"] == 1
    refused = client.post("/v1/embeddings", json={"input": "two", "dimensions": 3})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")


@pytest.mark.parametrize("given", [[1, 2], [[1], [2]], [], ["one", ""], [["one"]]])
def test_tokens_and_empty_inputs_are_refused(client, given):
    answer = client.post("/v1/embeddings", json={"input": given})
    assert answer.status_code == 400
    assert "input" in answer.json()["error"]["message"]


def test_search_finds_what_the_index_finds(client, encoder):
    said = client.post("/v1/search", json={"query": ["which is red", "blue"], "k": 2}).json()
    assert [found["index"] for found in said["data"]] == [0, 1]
    vectors, queries = (
        encoder.encode(["red is one", "green is two", "blue is three"]),
        encoder.encode(["which is red"], "query"),
    )
    best = int((vectors @ queries[0]).argmax())
    top = said["data"][0]["hits"][0]
    assert top["id"] == ["red", "green", "blue"][best]
    assert top["score"] == pytest.approx(float((vectors @ queries[0]).max()), abs=1e-5)
    words = client.post("/v1/search", json={"query": "three", "mode": "bm25"}).json()
    assert [hit["id"] for hit in words["data"][0]["hits"]] == ["blue"]
    assert words["data"][0]["hits"][0]["text"] == "blue is three"
    assert client.post("/v1/search", json={"query": "three", "mode": "hybrid"}).json()["mode"] == "hybrid"


def test_documents_are_found_replaced_and_gone(client):
    def found(query):
        said = client.post("/v1/search", json={"query": query, "mode": "bm25"}).json()
        return {hit["id"]: hit["text"] for hit in said["data"][0]["hits"]}

    documents = [{"id": "x", "text": "four four"}, {"id": "y", "text": "four"}, {"id": "x", "text": "four red"}]
    said = client.post("/v1/documents", json={"documents": documents}).json()
    assert (said["upserted"], said["truncated"]) == (2, 0)
    assert found("four") == {"x": "four red", "y": "four"}
    client.post("/v1/documents", json={"documents": [{"id": "x", "text": "the which"}]})
    assert found("four") == {"y": "four"}
    said = client.post("/v1/documents/delete", json={"ids": ["y", "nobody", "y"]}).json()
    assert (said["deleted"], said["unknown"]) == (1, ["nobody"])
    assert found("four") == {}
    assert client.delete("/v1/documents/x").status_code == 200
    gone = client.delete("/v1/documents/x")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "document_not_found")


def test_writes_survive_in_a_new_server(make_app, settings, tmp_path):
    from starlette.testclient import TestClient

    own = {**settings["retriever"]["docs"], "journal": str(tmp_path)}
    data = {**settings, "retriever": {"docs": own}}
    with TestClient(make_app(data), client=("127.0.0.1", 1)) as one:
        one.post("/v1/documents", json={"documents": [{"id": "x", "text": "four"}]})
        one.delete("/v1/documents/red")
        with TestClient(make_app(data), client=("127.0.0.1", 1)) as two:
            for client in (one, two):
                hits = client.post("/v1/search", json={"query": "four red", "mode": "bm25"}).json()["data"][0]["hits"]
                assert [hit["id"] for hit in hits] == ["x"]
            two.post("/v1/documents", json={"documents": [{"id": "z", "text": "four"}]})
            hits = one.post("/v1/search", json={"query": "four", "mode": "bm25"}).json()["data"][0]["hits"]
            assert {hit["id"] for hit in hits} == {"x", "z"}


def test_rerank_by_vectors_and_by_reward(client, encoder, served_models):
    said = client.post("/v1/rerank", json={"query": "red", "documents": TEXTS, "top_n": 2}).json()
    expected = encoder.encode(TEXTS) @ encoder.encode(["red"], "query")[0]
    assert [item["index"] for item in said["results"]] == np.argsort(-expected).tolist()[:2]
    np.testing.assert_allclose(
        [item["relevance_score"] for item in said["results"]], np.sort(expected)[::-1][:2], atol=1e-6
    )
    assert said["results"][0]["document"] is None
    body = {
        "model": "second",
        "query": "red",
        "documents": [{"text": text} for text in TEXTS],
        "return_documents": True,
    }
    said = client.post("/v1/rerank", json=body).json()
    model = RewardModel.load(served_models / "second")
    expected = [model.probability(score.score) for score in model.score("red", TEXTS)]
    assert [item["index"] for item in said["results"]] == np.argsort(-np.array(expected)).tolist()
    assert said["results"][0]["document"]["text"] == TEXTS[int(np.argmax(expected))]


def test_what_cannot_be_written_or_searched_says_so(client):
    document = {"documents": [{"id": "x", "text": "four"}], "model": "bare"}
    assert client.post("/v1/documents", json=document).json()["error"]["code"] == "no_index"
    assert client.post("/v1/search", json={"query": "four", "model": "bare"}).json()["error"]["code"] == "no_index"
    assert client.post("/v1/search", json={"query": "four", "k": 51}).status_code == 413
    assert client.post("/v1/search", json={"query": "four", "k": 0}).status_code == 400


def test_the_models_are_listed(client):
    said = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert list(said) == ["first", "second", "docs", "bare"]
    assert said["first"]["details"]["dimensions"] == ["quality", "length"]
    assert said["docs"]["details"]["documents"] >= 3
    assert client.get("/healthz").json()["status"] == client.get("/readyz").json()["status"] == "ok"
