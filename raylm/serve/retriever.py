"""The retriever service: vectors, search, and documents that are written while they are searched."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from raylm.errors import UserError
from raylm.serve.config import RetrieverSource
from raylm.serve.errors import ApiError
from raylm.serve.journal import Entry, Journal
from raylm.serve.service import Service
from raylm.serve.versions import Source, verify

if TYPE_CHECKING:
    from raylm.retrieval.encoder import Encoder
    from raylm.retrieval.index import Index

Mode = Literal["dense", "bm25", "hybrid"]
Kind = Literal["query", "document"]


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """Texts to be made vectors."""

    name: str
    texts: tuple[str, ...]
    kind: Kind

    @property
    def size(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class SearchJob:
    """Queries to be answered."""

    name: str
    queries: tuple[str, ...]
    k: int
    mode: Mode

    @property
    def size(self) -> int:
        return len(self.queries)


@dataclass(frozen=True, slots=True)
class WriteJob:
    """Documents to be upserted, or deleted when there are no texts."""

    name: str
    ids: tuple[str, ...]
    texts: tuple[str, ...] | None = None

    @property
    def size(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Of some texts, [texts, dimension] float32 of length 1."""

    revision: str
    vectors: np.ndarray
    tokens: int
    """Read in all, after the cut."""
    truncated: int
    """Texts that were cut."""


@dataclass(frozen=True, slots=True)
class Hits:
    """Of one search: for every query the ids, scores and texts of documents, the best first."""

    revision: str
    rows: tuple[tuple[tuple[str, float, str], ...], ...]


@dataclass(frozen=True, slots=True)
class Written:
    """How a write ended."""

    documents: int
    """Upserted, or deleted."""
    unknown: tuple[str, ...] = ()
    truncated: int = 0


class RetrieverBackend(Protocol):
    """Where vectors and documents come from: this process, or another deployment."""

    async def encode(self, name: str, texts: Sequence[str], kind: Kind) -> Vectors:
        """Vectors of texts."""
        ...

    async def search(self, name: str, queries: Sequence[str], k: int, mode: Mode) -> Hits:
        """Documents for queries."""
        ...

    async def write(self, name: str, ids: Sequence[str], texts: Sequence[str] | None) -> Written:
        """Upsert documents, or delete them when there are no texts."""
        ...


class Retriever:
    """An encoder with its index and the journal of what was written since the index was built."""

    def __init__(self, encoder: Encoder, index: Index | None, journal: Journal | None) -> None:
        """Put them together, with all that the journal holds.

        Raises:
            UserError: the index is of another encoder, or the journal is damaged.
        """
        from raylm.retrieval.live import LiveIndex

        self.encoder, self.journal = encoder, journal
        self.revision, self.width = encoder.hash, encoder.dimension
        if index is not None:
            index.check_encoder(encoder)
        self._live = None if index is None else LiveIndex(index)
        self.catch_up()
        if self._live is not None:
            self._live.settle()

    @property
    def index(self) -> Index | None:
        """The newest version that is in memory."""
        return None if self._live is None else self._live.current

    def encode(self, texts: Sequence[str], kind: Kind) -> np.ndarray:
        """Vectors, [texts, dimension]."""
        return self.encoder.encode(list(texts), kind=kind)

    def catch_up(self) -> Index | None:
        """The index at the end of the journal."""
        live = self._live
        if self.journal is None or live is None:
            return self.index
        last: dict[str, tuple[Entry, int]] = {}
        for entry in self.journal.read():
            for place, id in enumerate(entry.ids):
                last.pop(id, None)
                last[id] = entry, place
        if not last:
            return live.current
        gone = [id for id, (entry, _) in last.items() if entry.texts is None]
        kept = {id: entry.only(place) for id, (entry, place) in last.items() if entry.texts is not None}
        texts = [text for entry in kept.values() for text in entry.texts or ()]
        vectors = self._vectors(list(kept.values()), texts) if kept else None

        def change(index: Index) -> Index:
            index, _ = index.delete(gone, settle=False)
            return index if vectors is None else index.add(list(kept), texts, vectors, settle=False)

        return live.change(change)

    def write(self, jobs: Sequence[WriteJob]) -> list[Written]:
        """Have documents on disk and in the index; one wait for the disk serves all jobs."""
        index, journal = self.catch_up(), self.journal
        assert index is not None
        assert journal is not None
        entries, results = [], []
        there: dict[str, bool] = {}
        for job in jobs:
            ids = list(dict.fromkeys(job.ids))
            if job.texts is None:
                known = {id: there.get(id, id in index) for id in ids}
                gone = tuple(id for id in ids if known[id])
                entries += [Entry(gone)] if gone else []
                results.append(Written(len(gone), tuple(id for id in ids if not known[id])))
            else:
                last = dict(zip(job.ids, job.texts, strict=True))  # of equal ids the last one counts
                texts = tuple(last.values())
                entries.append(Entry(tuple(last), texts, self.revision, self.encode(texts, "document")))
                results.append(Written(len(last), truncated=self.encoder.truncated(texts)))
            there.update((id, job.texts is not None) for id in ids)
        try:
            journal.append(entries)
        except OSError as error:
            message = f"the documents could not be written ({error.strerror}); none was. Try again"
            raise ApiError(503, "journal_unavailable", message, headers={"Retry-After": "5"}) from error
        self.catch_up()
        journal.compact()
        return results

    def _vectors(self, entries: Sequence[Entry], texts: Sequence[str]) -> np.ndarray:
        """The journal's vectors, where they are this encoder's."""
        kept = [entry.vectors for entry in entries if entry.encoder == self.revision and entry.vectors is not None]
        return np.concatenate(kept) if len(kept) == len(entries) else self.encode(texts, "document")


class RetrieverService(Service[Retriever]):
    """Retrievers in this process."""

    kind = "retriever"

    async def encode(self, name: str, texts: Sequence[str], kind: Kind) -> Vectors:
        """Vectors of texts.

        Raises:
            ApiError: 503 when the encoder cannot be loaded.
        """
        found: Vectors = await self.submit(EncodeJob(name, tuple(texts), kind))
        return found

    async def search(self, name: str, queries: Sequence[str], k: int, mode: Mode) -> Hits:
        """Documents for queries.

        Raises:
            ApiError: 400 when the index does not allow this mode.
        """
        found: Hits = await self.submit(SearchJob(name, tuple(queries), k, mode))
        return found

    async def write(self, name: str, ids: Sequence[str], texts: Sequence[str] | None) -> Written:
        """Upsert documents, or delete them when there are no texts; returns when they are on disk.

        Raises:
            ApiError: 503 when the disk does not take them.
        """
        found: Written = await self.submit(WriteJob(name, tuple(ids), tuple(texts) if texts is not None else None))
        operation = "delete" if texts is None else "upsert"
        self.metrics.documents.inc(found.documents, model=name, operation=operation)
        return found

    def group(self, job: EncodeJob | SearchJob | WriteJob) -> Hashable:
        """What can share a call of the encoder."""
        if isinstance(job, SearchJob):
            return "search", job.k, job.mode
        return ("encode", job.kind) if isinstance(job, EncodeJob) else "write"

    def run_batch(self, model: Retriever, name: str, jobs: list[Any]) -> list[Any]:
        """Do jobs of one kind."""
        if isinstance(jobs[0], WriteJob):
            return model.write(jobs)
        return self._search(model, jobs) if isinstance(jobs[0], SearchJob) else self._encode(model, name, jobs)

    def _encode(self, model: Retriever, name: str, jobs: list[EncodeJob]) -> list[Vectors]:
        texts = [text for job in jobs for text in job.texts]
        vectors = model.encode(texts, jobs[0].kind)
        found, start = [], 0
        for job in jobs:
            tokens = model.encoder.tokens(job.texts, job.kind)
            own = vectors[start : start + job.size]
            found.append(Vectors(model.revision, own, sum(map(len, tokens.ids)), tokens.overlong))
            start += job.size
        self.metrics.truncated.inc(sum(each.truncated for each in found), model=name)
        return found

    def _search(self, model: Retriever, jobs: list[SearchJob]) -> list[Hits]:
        index = model.catch_up()
        assert index is not None
        queries = [query for job in jobs for query in job.queries]
        rows = iter(index.search_text(queries, model.encoder, jobs[0].k, mode=jobs[0].mode))
        found = []
        for job in jobs:
            own = [next(rows) for _ in job.queries]
            shown = tuple(tuple((hit.id, hit.score, index.text(hit.id)) for hit in row) for row in own)
            found.append(Hits(model.revision, shown))
        return found

    def describe(self, name: str) -> tuple[str | None, dict[str, Any]]:
        """Revision and facts of the version in memory."""
        model = self.versions.peek(name)
        if model is None:
            return None, {}
        documents = None if model.index is None else len(model.index)
        facts = {"dimension": model.width, "max_length": model.encoder.max_length, "documents": documents}
        return model.revision, {**facts, "writable": model.journal is not None}


def sources(given: Mapping[str, RetrieverSource], threads: int, gpus: float) -> dict[str, Source[Retriever]]:
    """Retrievers to be loaded from their directories.

    Raises:
        UserError: an index is not there.
    """
    found = {}
    for name, item in given.items():
        paths = [Path(place).expanduser().absolute() for place in (item.encoder, item.index) if place]
        if item.index and not paths[-1].is_dir():
            raise UserError(f"retriever.{name}.index={item.index}: no such directory")
        watched = tuple(path for path in paths if path.is_dir())
        found[name] = Source(lambda item=item: _load(item, threads, gpus), watched)  # type: ignore[misc]
    return found


def _load(item: RetrieverSource, threads: int, gpus: float) -> Retriever:
    import torch

    from raylm.retrieval.encoder import Encoder
    from raylm.retrieval.index import Index

    torch.set_num_threads(threads)
    local = Path(item.encoder).expanduser()
    if local.is_dir():
        verify(local.resolve())
    encoder = Encoder.load(str(local.resolve()) if local.is_dir() else item.encoder, device="cuda" if gpus else "cpu")
    index = None
    if item.index:
        place = Path(item.index).expanduser().resolve()
        verify(place)
        index = Index.open(str(place))
    journal = Journal(Path(item.journal).expanduser()) if item.journal else None
    return Retriever(encoder, index, journal)
