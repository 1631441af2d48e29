"""/v1/embeddings, /v1/search, /v1/rerank and /v1/documents."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response

from raylm.serve import api
from raylm.serve.errors import ApiError
from raylm.serve.routes import Served, key_of, options, reply


def add(app: FastAPI, served: Served) -> None:
    """Serve a retriever service's routes."""
    limits = served.config.limits

    @app.post("/v1/embeddings", **options("Vectors of texts, in OpenAI's form", api.Embeddings))
    async def embeddings(body: api.EmbeddingsRequest, request: Request) -> Response:
        texts = _texts(body.input)
        api.check_texts(texts, limits, "input")
        _, name = served.choose(request, body.model, ("retriever",))
        found = await served.retrievers.encode(name, texts, body.input_type)
        width = found.vectors.shape[1]
        if body.dimensions not in (None, width):
            raise ApiError(
                400, "bad_dimensions", f"this encoder's vectors have {width} coordinates", param="dimensions"
            )
        data = [
            api.Embedding(index=place, embedding=_written(vector, body.encoding_format))
            for place, vector in enumerate(found.vectors)
        ]
        usage = api.Usage(prompt_tokens=found.tokens, total_tokens=found.tokens)
        return reply(
            api.Embeddings(model=name, revision=found.revision, data=data, usage=usage, truncated=found.truncated)
        )

    @app.post("/v1/search", **options("Documents for queries", api.SearchAnswer))
    async def search(body: api.SearchRequest, request: Request) -> Response:
        queries = api.as_list(body.query)
        api.check_texts(queries, limits, "query")
        if body.k > limits.top_k:
            raise ApiError(413, "k_too_large", f"k: at most {limits.top_k}", param="k")
        _, name = served.choose(request, body.model, ("retriever",))
        source = _with_index(served, name)
        mode = body.mode or source.mode
        found = await served.retrievers.search(name, queries, body.k, mode)
        data = [
            api.Found(index=place, hits=[api.Hit(id=id, score=score, text=text) for id, score, text in row])
            for place, row in enumerate(found.rows)
        ]
        return reply(api.SearchAnswer(model=name, revision=found.revision, mode=mode, data=data))

    @app.post("/v1/documents", **options("Add or replace documents", api.Upserted))
    async def upsert(body: api.UpsertRequest, request: Request) -> Response:
        api.check_texts([item.text for item in body.documents], limits, "documents")
        name = _writable(served, request, body.model)
        ids, texts = [item.id for item in body.documents], [item.text for item in body.documents]
        found = await served.retrievers.write(name, ids, texts)
        return reply(api.Upserted(model=name, upserted=found.documents, truncated=found.truncated))

    @app.post("/v1/documents/delete", **options("Delete documents; says which ids were unknown", api.Deleted))
    async def delete(body: api.DeleteRequest, request: Request) -> Response:
        api.check_texts(body.ids, limits, "ids")
        name = _writable(served, request, body.model)
        found = await served.retrievers.write(name, body.ids, None)
        return reply(api.Deleted(model=name, deleted=found.documents, unknown=list(found.unknown)))

    @app.delete("/v1/documents/{id}", **options("Delete one document", api.Deleted))
    async def delete_one(id: api.DocumentId, request: Request, model: api.Name | None = None) -> Response:
        name = _writable(served, request, model)
        found = await served.retrievers.write(name, [id], None)
        if found.unknown:
            raise ApiError(404, "document_not_found", "there is no document of this id", param="id")
        return reply(api.Deleted(model=name, deleted=1, unknown=[]))


def add_rerank(app: FastAPI, served: Served) -> None:
    """Serve /v1/rerank, by whichever kind of model there is."""
    limits = served.config.limits

    @app.post("/v1/rerank", **options("Documents by relevance to a query", api.RerankAnswer))
    async def rerank(body: api.RerankRequest, request: Request) -> Response:
        texts = [item if isinstance(item, str) else item.text for item in body.documents]
        api.check_texts(texts, limits, "documents")
        api.check_texts([body.query], limits, "query")
        kind, name = served.choose(request, body.model, ("retriever", "reward"))
        if kind == "reward":
            scored = await served.rewards.score(name, body.query, texts)
            revision, scores = scored.revision, list(scored.probabilities)
        else:
            query, documents = await asyncio.gather(
                served.retrievers.encode(name, [body.query], "query"), served.retrievers.encode(name, texts, "document")
            )
            revision, scores = documents.revision, (documents.vectors @ query.vectors[0]).tolist()
        order = sorted(range(len(texts)), key=lambda place: (-scores[place], place))[: body.top_n]
        results = [
            api.Reranked(
                index=place,
                relevance_score=scores[place],
                document=api.RerankDocument(text=texts[place]) if body.return_documents else None,
            )
            for place in order
        ]
        return reply(api.RerankAnswer(id=request.state.request_id, model=name, revision=revision, results=results))


def _texts(given: Any) -> list[str]:
    texts = api.as_list(given)
    if not texts or any(not isinstance(text, str) for text in texts):
        message = "input: one text or a list of texts; tokens are refused, since they are of another tokenizer"
        raise ApiError(400, "invalid_input", message, param="input")
    if any(not text for text in texts):
        raise ApiError(400, "invalid_input", "input: a text is empty", param="input")
    return texts


def _written(vector: np.ndarray, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
    return vector.tolist()


def _with_index(served: Served, name: str) -> Any:
    source = served.config.retriever[name]
    if source.index is None:
        raise ApiError(
            400, "no_index", "this retriever has no documents; /v1/rerank takes them in the request", param="model"
        )
    return source


def _writable(served: Served, request: Request, name: str | None) -> str:
    """Name of a retriever that the key may write to."""
    _, chosen = served.choose(request, name, ("retriever",))
    if not key_of(request).write:
        raise ApiError(403, "read_only_key", "this key may not write; its `write` is off in the server's config")
    if _with_index(served, chosen).journal is None:
        raise ApiError(403, "read_only", "this retriever takes no documents; its config has no `journal`")
    return chosen
