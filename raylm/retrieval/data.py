"""Collections in the BEIR layout: corpus.jsonl and queries.jsonl (.gz too), and judgments in qrels/SPLIT.tsv.

The corpus is read as a stream; only ids stay in memory. What is wrong with a collection is counted, and refused where
results would silently be about something else.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from raylm.errors import UserError
from raylm.rows import lines_of
from raylm.storage import Store

Judgments = dict[str, dict[str, int]]
"""Query id to document id to grade; 0 is judged as not relevant."""
SHOWN = 5
"""Ids that a message lists."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that can be found."""

    id: str
    text: str
    """What is read: title and body in one, or the body alone."""


@dataclass(frozen=True)
class Census:
    """What a collection holds, and what is wrong with it."""

    documents: int
    queries: int
    judged: dict[str, int]
    """Split to its judgments that can be used."""
    empty: tuple[str, ...]
    """Documents without text; they are left out, since nothing can find them."""
    repeated_texts: int
    """Documents whose text an earlier one has too: a judgment for one is no judgment for its twin."""
    missing_documents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Split to the documents that its judgments name and the corpus lacks, empty ones among them."""
    missing_queries: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The same for queries."""
    unjudged_queries: dict[str, int] = field(default_factory=dict)
    """Split to its queries without a relevant document that is there."""


class Collection:
    """A folder in the BEIR layout, on any fsspec path."""

    def __init__(self, path: str, *, titles: bool = True) -> None:
        """Open a collection.

        Args:
            path: the folder.
            titles: whether a document's title is part of its text.

        Raises:
            UserError: the folder lacks a corpus or queries.
        """
        self.path, self.titles, self.store = str(path).rstrip("/"), titles, Store(path)
        self._corpus, self._queries = self._file("corpus.jsonl"), self._file("queries.jsonl")

    def documents(self) -> Iterator[Document]:
        """The documents that have a text, in the corpus' order, read as a stream.

        Raises:
            UserError: a row is malformed, or an id is there twice.
        """
        for document in self._all_documents():
            if document.text:
                yield document

    def queries(self) -> dict[str, str]:
        """Query id to its text.

        Raises:
            UserError: a row is malformed or empty, or an id is there twice.
        """
        found: dict[str, str] = {}
        for number, row in self._rows(self._queries):
            where = f"{self.path}/{self._queries}: line {number}"
            name, text = _text(row, "_id", where), _text(row, "text", where).strip()
            if not text:
                raise UserError(f"{where}: query {name} has no text; remove it and its judgments")
            if name in found:
                raise UserError(f"{where}: query id {name} is there twice; ids must differ")
            found[name] = text
        return found

    def splits(self) -> list[str]:
        """Names of the judgment files, without .tsv."""
        return [name.removesuffix(".tsv") for name in self.store.names("qrels") if name.endswith(".tsv")]

    def judgments(self, split: str) -> Judgments:
        """Grades of a split, as its file says, whether or not queries and documents exist.

        Three columns (query-id, corpus-id, score; with or without a header) or TREC's four.

        Raises:
            UserError: there is no such file, a line is malformed, or a pair has two grades.
        """
        if split not in self.splits():
            known = ", ".join(self.splits()) or "none"
            raise UserError(f"{self.path}: no judgments qrels/{split}.tsv; there are: {known}")
        found: Judgments = {}
        for number, data in enumerate(lines_of(self.store.read_bytes(f"qrels/{split}.tsv")), start=1):
            line = data.decode("utf-8", "replace")
            columns = line.split("\t") if "\t" in line else line.split()
            if not line.strip() or (number == 1 and columns[0] in ("query-id", "qid", "query_id")):
                continue
            where = f"{self.path}/qrels/{split}.tsv: line {number}"
            if len(columns) not in (3, 4):
                raise UserError(f"{where}: {len(columns)} columns; give query-id, corpus-id and score")
            query, document, score = columns[0], columns[-2], columns[-1]
            try:
                grade = int(score)
            except ValueError:
                raise UserError(f"{where}: score {score!r} is not a whole number") from None
            if found.setdefault(query, {}).setdefault(document, grade) != grade:
                raise UserError(f"{where}: query {query} and document {document} have two different scores")
        return found

    def texts(self, wanted: Iterable[str]) -> dict[str, str]:
        """Document id to text, of those wanted that are there; one pass over the corpus."""
        names = set(wanted)
        return {document.id: document.text for document in self.documents() if document.id in names}

    def usable(self, split: str) -> Judgments:
        """Grades of the queries and documents that exist."""
        queries, documents = self.queries(), {document.id for document in self.documents()}
        return _existing(self.judgments(split), set(queries), documents)

    def census(self, splits: Iterable[str], *, allow_missing: bool = False) -> Census:
        """Look at everything once.

        Args:
            splits: judgments that will be used.
            allow_missing: leave out judgments that name missing documents or queries instead of refusing them.

        Raises:
            UserError: judgments name what is not there, or no judgment of a split is left; malformed files.
        """
        queries, documents, empty = self.queries(), set[str](), list[str]()
        seen, repeated = set[bytes](), 0
        for document in self._all_documents():
            if not document.text:
                empty.append(document.id)
                continue
            documents.add(document.id)
            mark = hashlib.blake2b(document.text.encode(), digest_size=12).digest()
            repeated += mark in seen
            seen.add(mark)
        if not documents:
            raise UserError(f"{self.path}/{self._corpus}: holds no document with a text")
        found = Census(len(documents), len(queries), {}, tuple(empty), repeated)
        for split in splits:
            judged = self.judgments(split)
            named = {document for grades in judged.values() for document in grades}
            found.missing_documents[split] = tuple(sorted(named - documents))
            found.missing_queries[split] = tuple(sorted(judged.keys() - queries.keys()))
            kept = _existing(judged, set(queries), documents)
            found.judged[split] = sum(map(len, kept.values()))
            found.unjudged_queries[split] = len(judged) - sum(any(row.values()) for row in kept.values())
            self._refuse_missing(split, found, allow_missing)
        return found

    def digest(self, splits: Iterable[str]) -> str:
        """Sixteen hex digits over the bytes of corpus, queries and some judgments, and whether titles are read."""
        digest = hashlib.sha256(str(self.titles).encode())
        for name in (self._corpus, self._queries, *(f"qrels/{split}.tsv" for split in splits)):
            with self.store.fs.open(self.store.path(name), "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()[:16]

    def _refuse_missing(self, split: str, census: Census, allowed: bool) -> None:
        missing = {"documents": census.missing_documents[split], "queries": census.missing_queries[split]}
        for what, names in missing.items():
            if names and not allowed:
                raise UserError(
                    f"{self.path}/qrels/{split}.tsv names {len(names)} {what} that are not there or have no text: "
                    f"{', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}; add them, or leave their "
                    "judgments out with allow_missing=true"
                )
        if census.judged[split] == 0:
            raise UserError(f"{self.path}/qrels/{split}.tsv: no judgment of a query and a document that are there")

    def _all_documents(self) -> Iterator[Document]:
        seen: set[str] = set()
        for number, row in self._rows(self._corpus):
            where = f"{self.path}/{self._corpus}: line {number}"
            name = _text(row, "_id", where)
            if name in seen:
                raise UserError(f"{where}: document id {name} is there twice; ids must differ")
            seen.add(name)
            title = _text(row, "title", where, "").strip() if self.titles else ""
            yield Document(name, f"{title} {_text(row, 'text', where).strip()}".strip())

    def _file(self, name: str) -> str:
        for found in (name, f"{name}.gz"):
            if self.store.exists(found):
                return found
        raise UserError(
            f"{self.path}: no {name} or {name}.gz; give a folder in the BEIR layout (corpus.jsonl, queries.jsonl, "
            "qrels/*.tsv)"
        )

    def _rows(self, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
        with self.store.fs.open(self.store.path(name), "rb") as raw:
            file: Any = gzip.GzipFile(fileobj=raw) if name.endswith(".gz") else raw
            try:
                for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8", errors="replace"), start=1):
                    if not line.strip():
                        continue
                    try:
                        row = json.loads(line)
                    except ValueError as error:
                        raise UserError(f"{self.path}/{name}: line {number}: not JSON ({error})") from None
                    if not isinstance(row, dict):
                        raise UserError(f"{self.path}/{name}: line {number}: a {type(row).__name__}, not an object")
                    yield number, row
            except (EOFError, gzip.BadGzipFile) as error:
                raise UserError(f"{self.path}/{name}: cut short or damaged ({error}); copy it again") from None


def chunks(document: Document, tokenizer: Any, length: int, overlap: int = 0) -> list[Document]:
    """A document in pieces that an encoder reads whole; a short one is its only piece, under its own id.

    Args:
        tokenizer: of the encoder, one that knows where in a text its tokens lie.
        length: tokens of a piece, special ones among them.
        overlap: tokens that a piece repeats of the one before.

    Returns:
        Pieces with ids `DOCUMENT#0`, `DOCUMENT#1`, ...; together they cover the whole text.
    """
    inner = length - tokenizer.num_special_tokens_to_add()
    if not 0 <= overlap < inner:
        raise UserError(f"chunk overlap {overlap} must be less than the {inner} tokens of text that a chunk holds")
    places = tokenizer(
        document.text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
    )["offset_mapping"]
    if len(places) <= inner:
        return [document]
    starts = range(0, max(1, len(places) - overlap), inner - overlap)
    spans = [places[start : start + inner] for start in starts]
    return [Document(f"{document.id}#{n}", document.text[span[0][0] : span[-1][1]]) for n, span in enumerate(spans)]


def whole(chunk: str) -> str:
    """The id of the document that a piece by `chunks` is part of."""
    head, mark, number = chunk.rpartition("#")
    return head if mark and number.isdigit() else chunk


def _existing(judged: Judgments, queries: set[str], documents: set[str]) -> Judgments:
    kept = {
        query: {name: grade for name, grade in grades.items() if name in documents}
        for query, grades in judged.items()
        if query in queries
    }
    return {query: grades for query, grades in kept.items() if grades}


def _text(row: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool) and key == "_id":
        value = str(value)
    if not isinstance(value, str) or (key == "_id" and not value):
        raise UserError(f"{where}: {key} is {value!r}; it must be a text")
    return value
