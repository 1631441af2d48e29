"""Bodies of requests and answers. Where a common form exists (OpenAI's, Jina's and Cohere's rerank) it is used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from raylm.serve.config import Limits
from raylm.serve.errors import ApiError

Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=64)]
DocumentId = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Strict(BaseModel):
    """A request whose unknown fields are refused, so that a slip is not lost."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Lenient(BaseModel):
    """A request of a common form, whose further fields are let pass."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)


class Answer(BaseModel):
    """An answer."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Turn(Strict):
    """One message of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text


Prompt = Text | Annotated[list[Turn], Field(min_length=1)]


class ScoreRequest(Strict):
    """Score one or several responses to a prompt."""

    model: Name | None = None
    """Reward model; the first one if none is named."""
    prompt: Prompt
    """A text, or the messages of a chat."""
    responses: Text | Annotated[list[Text], Field(min_length=1)]
    """One response or several."""


class CompareRequest(Strict):
    """Which of two responses is better, and why."""

    model: Name | None = None
    """Reward model; the first one if none is named."""
    prompt: Prompt
    """A text, or the messages of a chat."""
    response_a: Text
    response_b: Text


class ScoreItem(Answer):
    """What a reward model says of a response."""

    index: int
    """Its place among the responses."""
    score: float
    """Log-odds that it is preferred to an average response."""
    probability: float
    """The same as a probability."""
    dimensions: dict[str, float]
    """Value of every dimension that has something to say."""
    attribution: dict[str, float]
    """What every dimension adds to the score."""
    truncated: bool
    """Whether prompt or response were longer than the model reads, and were cut."""
    flags: list[str]
    """`prompt_truncated`, `response_truncated`, `absent:NAME`, `failed:NAME`."""


class Scores(Answer):
    """Scores in the order of the responses."""

    object: Literal["list"] = "list"
    model: str
    revision: str
    """Digest of the model's files."""
    data: list[ScoreItem]


class Comparison(Answer):
    """Two scored responses side by side."""

    object: Literal["comparison"] = "comparison"
    model: str
    revision: str
    winner: Literal["a", "b", "tie"]
    probability: float
    """That a is preferred to b."""
    margin: float
    """Score of a minus score of b."""
    reasons: dict[str, float]
    """Attribution of a minus attribution of b, the largest first."""
    a: ScoreItem
    b: ScoreItem


class EmbeddingsRequest(Lenient):
    """OpenAI's form."""

    model: Name | None = None
    """Retriever; the first one if none is named."""
    input: Text | list[Text] | list[int] | list[list[int]]
    """One text or several. Tokens are refused: they are of another tokenizer."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """None, or the encoder's own."""
    input_type: Literal["query", "document"] = "document"
    """Which prefix the encoder puts before the texts."""


class Embedding(Answer):
    """One vector of length 1."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """Numbers, or base64 of little-endian float32."""


class Usage(Answer):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Answer):
    """OpenAI's form, and what was cut."""

    object: Literal["list"] = "list"
    model: str
    revision: str
    data: list[Embedding]
    usage: Usage
    truncated: int
    """Texts that were longer than the encoder reads, and were cut."""


class SearchRequest(Strict):
    """Search the documents of a retriever."""

    model: Name | None = None
    """Retriever; the first one if none is named."""
    query: Text | Annotated[list[Text], Field(min_length=1)]
    """One query or several."""
    k: Annotated[int, Field(ge=1, le=1 << 20)] = 10
    """Documents for each query."""
    mode: Literal["dense", "bm25", "hybrid"] | None = None
    """By vectors, by words, or by both; what the server's config says if it is left out."""


class Hit(Answer):
    """A document that was found."""

    id: str
    score: float
    """Cosine, BM25 or fused rank score, by the mode."""
    text: str


class Found(Answer):
    """Documents for one query, the best first."""

    index: int
    """Place of the query."""
    hits: list[Hit]


class SearchAnswer(Answer):
    """Documents for every query."""

    object: Literal["list"] = "list"
    model: str
    revision: str
    """Hash of the encoder."""
    mode: Literal["dense", "bm25", "hybrid"]
    data: list[Found]


class RerankDocument(Lenient):
    """A document as Cohere's form has it."""

    text: Text


class RerankRequest(Lenient):
    """The form of Jina and Cohere."""

    model: Name | None = None
    """A retriever (cosine) or a reward model (probability); the first retriever if none is named."""
    query: Text
    documents: Annotated[list[Text | RerankDocument], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False


class Reranked(Answer):
    """A document and its relevance."""

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class RerankAnswer(Answer):
    """The most relevant documents first."""

    object: Literal["list"] = "list"
    id: str
    """Of the request."""
    model: str
    revision: str
    results: list[Reranked]


class Document(Strict):
    """A document to be found."""

    id: DocumentId
    text: Text


class UpsertRequest(Strict):
    """Add documents; those whose id is there already are replaced."""

    model: Name | None = None
    """Retriever; the first one if none is named."""
    documents: Annotated[list[Document], Field(min_length=1)]


class Upserted(Answer):
    """The documents are on disk, and every search that begins now finds them."""

    object: Literal["upsert"] = "upsert"
    model: str
    upserted: int
    truncated: int
    """Documents that are longer than the encoder reads: their vectors are of their beginnings."""


class DeleteRequest(Strict):
    """Delete documents by their ids."""

    model: Name | None = None
    """Retriever; the first one if none is named."""
    ids: Annotated[list[DocumentId], Field(min_length=1)]


class Deleted(Answer):
    """The documents are gone from disk and from every search that begins now."""

    object: Literal["delete"] = "delete"
    model: str
    deleted: int
    unknown: list[str]
    """Ids that were not there."""


class Model(Answer):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When this replica began."""
    owned_by: Literal["raylm"] = "raylm"
    kind: Literal["reward", "retriever"]
    loaded: bool
    """Whether this replica has it in memory."""
    revision: str | None
    """Of the version in memory."""
    error: str | None
    """Why the newest files are not served."""
    details: dict[str, Any]
    """Dimensions of a reward model; width, documents and what is allowed of a retriever."""


class Models(Answer):
    """Models that the key may use."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(Answer):
    """How a replica is."""

    status: Literal["ok", "not_ready"]
    reasons: list[str] = []


class ErrorBody(Answer):
    """What was wrong, and what to do."""

    message: str
    type: str
    param: str | None
    code: str
    request_id: str


class Error(Answer):
    """Every status of 400 and above."""

    error: ErrorBody


def as_list(value: Any) -> list[Any]:
    """Several, where one may stand for itself."""
    return value if isinstance(value, list) else [value]


def check_texts(texts: Iterable[str], limits: Limits, param: str) -> None:
    """Refuse too many or too long texts.

    Raises:
        ApiError: 413.
    """
    for count, text in enumerate(texts, 1):
        if count > limits.texts:
            raise ApiError(413, "too_many_texts", f"{param}: at most {limits.texts} in one request", param=param)
        if len(text) > limits.text_chars:
            message = f"{param}: a text has {len(text)} characters, and {limits.text_chars} are allowed"
            raise ApiError(413, "text_too_long", message, param=param)
