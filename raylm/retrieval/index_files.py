"""An index as a directory: files named by their content, and index.json, whose replacement makes a version current.

    index.json            what the index is, and the SHA-256 of each of its files
    files/HASH-NAME       base.faiss, base.parquet (ids and texts), bm25-*, and tail.parquet and dead.json of what
                          changed since the last build

A reader that has read index.json finds its files as long as no more than one newer version is written meanwhile; it
begins again where they are gone. One process at a time may write.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raylm.config import identity
from raylm.errors import UserError
from raylm.retrieval.ann import Ann
from raylm.retrieval.index import Base, Index, Source, Tail
from raylm.retrieval.index_config import IndexSettings
from raylm.retrieval.lexical import Lexical
from raylm.storage import Store

MANIFEST, FORMAT = "index.json", 1
_TRIES = 3


def write(index: Index, path: str) -> None:
    """Make `index` the newest version in the directory."""
    store = Store(path)
    before = _files_of(store.read_json(MANIFEST)) if store.exists(MANIFEST) else set()
    files = {**_write_base(index.base, store), **_write_changes(index, store)}
    manifest = {
        "format": FORMAT,
        "encoder": asdict(index.source),
        "dimension": index.dimension,
        "metric": "cosine",
        "kind": index.kind,
        "count": len(index),
        "settings": {**identity(index.settings), "compact_at": index.settings.compact_at},
        "facts": index.facts,
        "files": files,
    }
    store.write_json(MANIFEST, manifest)
    current = _files_of(manifest)
    for name in store.names("files"):
        if f"files/{name}" not in current | before:
            store.remove(f"files/{name}")


def read(path: str) -> Index:
    """The newest version in a directory, or in the `index` folder of an artefact; errors as `Index.open`."""
    store = Store(path)
    if not store.exists(MANIFEST) and store.exists(f"index/{MANIFEST}"):
        store = store.child("index")
    if not store.exists(MANIFEST):
        raise UserError(f"{path}: no index here ({MANIFEST} is missing); build one with raylm index out={path}")
    for tries in range(_TRIES):
        said = store.read_json(MANIFEST)
        if said.get("format") != FORMAT:
            raise UserError(f"{path}: index format {said.get('format')}; this raylm reads {FORMAT}, build it again")
        try:
            return _read(store, said)
        except FileNotFoundError as error:
            # A writer may have put two versions after this one; then there is another manifest now.
            if tries + 1 == _TRIES or store.read_json(MANIFEST) == said:
                raise UserError(f"{error.filename or error}: a file of the index is missing; copy it again") from None
    raise AssertionError


def describe(path: str) -> dict[str, Any]:
    """What index.json says, without reading the rest."""
    store = Store(path)
    if not store.exists(MANIFEST):
        store = store.child("index")
    if not store.exists(MANIFEST):
        raise UserError(f"{path}: no index here ({MANIFEST} is missing); build one with raylm index out={path}")
    found: dict[str, Any] = store.read_json(MANIFEST)
    return found


def _read(store: Store, said: dict[str, Any]) -> Index:
    files = {name: _checked(store, entry) for name, entry in said["files"].items()}
    settings = IndexSettings.model_validate(said["settings"])
    documents = _table(files["base.parquet"])
    ids = np.array(documents.column("id").to_pylist(), dtype=object)
    texts = documents.column("text").to_pylist()
    words = {name.removeprefix("bm25-"): data for name, data in files.items() if name.startswith("bm25-")}
    lexical = Lexical.from_files(words, texts, settings)
    where = f"{store.url}/{said['files']['base.faiss']['file']}"
    ann = Ann.from_bytes(said["kind"], files["base.faiss"], where)
    stored = {name: entry["sha256"] for name, entry in said["files"].items() if not _changes(name)}
    base = Base(ids, texts, {name: row for row, name in enumerate(ids)}, ann, lexical, stored)
    tail = _tail(_table(files["tail.parquet"]), said["dimension"], lexical.split)
    dead = frozenset(json.loads(files["dead.json"]))
    return Index(Source(**said["encoder"]), settings, base, tail, dead, said["facts"])


def _tail(table: pa.Table, dimension: int, split: Callable[[str], list[str]]) -> Tail:
    ids, texts = (tuple(table.column(name).to_pylist()) for name in ("id", "text"))
    flat = table.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors = flat.astype(np.float32).reshape(len(ids), dimension)
    return Tail(ids, texts, vectors, tuple(Counter(split(text)) for text in texts))


def _write_base(base: Base, store: Store) -> dict[str, dict[str, str]]:
    """Write what the directory lacks of the built part."""
    if base.stored and all(store.exists(_place(name, sha)) for name, sha in base.stored.items()):
        return {name: _entry(name, sha) for name, sha in base.stored.items()}
    documents = pa.table({"id": pa.array(list(base.ids), pa.string()), "text": pa.array(list(base.texts), pa.string())})
    content = {"base.faiss": base.ann.to_bytes(), "base.parquet": _parquet(documents)}
    content |= {f"bm25-{name}": data for name, data in base.lexical.to_files().items()}
    written = {name: _put(store, name, data) for name, data in content.items()}
    base.stored.update({name: entry["sha256"] for name, entry in written.items()})
    return written


def _write_changes(index: Index, store: Store) -> dict[str, dict[str, str]]:
    tail = index.tail
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(tail.vectors.ravel(), pa.float32()), index.dimension)
    columns = {"id": pa.array(tail.ids, pa.string()), "text": pa.array(tail.texts, pa.string()), "vector": vectors}
    content = {"tail.parquet": _parquet(pa.table(columns)), "dead.json": json.dumps(sorted(index.dead)).encode()}
    return {name: _put(store, name, data) for name, data in content.items()}


def _put(store: Store, name: str, data: bytes) -> dict[str, str]:
    sha = hashlib.sha256(data).hexdigest()
    if not store.exists(_place(name, sha)):
        store.write_bytes(_place(name, sha), data)
    return _entry(name, sha)


def _entry(name: str, sha: str) -> dict[str, str]:
    return {"file": _place(name, sha), "sha256": sha}


def _place(name: str, sha: str) -> str:
    return f"files/{sha[:16]}-{name}"


def _changes(name: str) -> bool:
    return name in ("tail.parquet", "dead.json")


def _files_of(manifest: dict[str, Any]) -> set[str]:
    return {entry["file"] for entry in manifest["files"].values()}


def _checked(store: Store, entry: dict[str, str]) -> bytes:
    data = store.read_bytes(entry["file"])
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise UserError(
            f"{store.url}/{entry['file']}: its content is not what {MANIFEST} says ({len(data)} bytes; it was cut "
            "short or changed); copy it again, or build the index again"
        )
    return data


def _table(data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
