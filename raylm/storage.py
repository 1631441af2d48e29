"""Artefacts on any fsspec path: atomic files, manifests, and the rule for reusing finished work.

A stage owns one directory:

    manifest.json    written last; its presence means that the artefact is complete
    started.json     the identity of the run that owns the directory
    parts/           one file a unit of work, each committed atomically (removed once merged)
    snapshots/       unfinished units of stages that can go on from within one (removed once committed)
    data/            the finished rows, Parquet
    timing.json      wall-clock facts; everything else is a function of config, inputs and seeds
    report.html
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import posixpath
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from raylm import __version__
from raylm.config import Config, config_hash, identity
from raylm.errors import UserError

MANIFEST, STARTED, TIMING = "manifest.json", "started.json", "timing.json"
SHARD_ROWS = 4096


class Manifest(BaseModel):
    """What an artefact is and what it was made from; equal runs write equal manifests."""

    stage: str
    config: dict[str, Any]
    config_hash: str
    inputs: dict[str, str]
    """Name of each input to the digest of its manifest or file."""
    outputs: dict[str, str]
    """File inside the artefact to its SHA-256."""
    rows: int
    versions: dict[str, str]
    model: dict[str, str] = {}
    funnel: dict[str, int] = {}
    """Counts that only fall from left to right, in order."""
    tokens: dict[str, int] = {}
    figures: dict[str, Any] = {}

    def digest(self) -> str:
        """Identity of this artefact for the stages that read it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class Store:
    """A directory on an fsspec filesystem whose writes appear whole or not at all."""

    def __init__(self, url: str) -> None:
        """Open `url` (a local path or any fsspec URL) without creating it.

        Raises:
            UserError: the URL's protocol is unknown or its package is not installed.
        """
        self.url = str(url).rstrip("/") or ("/" if url else "")
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(f"{url}: {error} (install the filesystem's fsspec package or use a local path)") from None
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    @classmethod
    def of_file(cls, path: str) -> tuple[Store, str]:
        """The store of the directory that a file lies in, and the file's name there."""
        folder, _, name = path.rpartition("/")
        return cls(folder or ("/" if path.startswith("/") else ".")), name

    @property
    def place(self) -> str:
        """The directory for other processes, whose working directory may be another one: absolute, or the URL."""
        return str(self.root) if self.local else self.url

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.place,)

    def child(self, name: str) -> Store:
        """The store of a sub-directory."""
        return Store(f"{self.url}/{name}")

    def path(self, name: str) -> str:
        """Absolute path of `name` on the filesystem; refuses to leave the store's root."""
        path = posixpath.normpath(posixpath.join(self.root, name))
        if path != self.root and not path.startswith(self.root.rstrip("/") + "/"):
            raise UserError(f"{name}: lies outside {self.url}")
        return path

    def check_writable(self) -> None:
        """Write and remove a probe file.

        Raises:
            UserError: the directory cannot be written.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.write_bytes(probe, b"")
            self.remove(probe)
        except (OSError, PermissionError) as error:
            raise UserError(f"{self.url}: cannot write here ({error}); choose another out=") from None

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(self.path(name)))

    def names(self, folder: str) -> list[str]:
        """File names directly under `folder`, sorted; empty when there is no such folder."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self.path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for item in found if not (name := posixpath.basename(item)).startswith("."))

    def read_bytes(self, name: str) -> bytes:
        return bytes(self.fs.cat_file(self.path(name)))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file atomically: readers see the old content or all of the new."""
        path = self.path(name)
        if not self.local:
            self.fs.pipe_file(path, data)  # object stores publish a PUT as a whole
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{uuid.uuid4().hex}")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read_bytes(name))
        except json.JSONDecodeError as error:
            raise UserError(f"{self.url}/{name}: damaged JSON ({error}); remove the file and run again") from None

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=1, sort_keys=True, default=str) + "\n").encode())

    def read_table(self, name: str) -> pa.Table:
        return pq.read_table(io.BytesIO(self.read_bytes(name)))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write Parquet whose bytes depend on the rows alone."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self.write_bytes(name, buffer.getvalue())

    def remove(self, name: str) -> None:
        """Remove a file or a folder; nothing happens when it is not there."""
        if self.fs.exists(self.path(name)):
            self.fs.rm(self.path(name), recursive=True)

    def read_data(self) -> pa.Table:
        """All finished rows of a stage's artefact.

        Raises:
            UserError: the artefact is not complete.
        """
        manifest = self.manifest()
        if manifest is None:
            raise UserError(f"{self.url}: no finished artefact here (manifest.json is missing); run its stage first")
        names = sorted(name for name in manifest.outputs if name.startswith("data/") and name.endswith(".parquet"))
        return pa.concat_tables([self.read_table(name) for name in names])

    def manifest(self) -> Manifest | None:
        """The manifest of a finished artefact, None when there is none."""
        if not self.exists(MANIFEST):
            return None
        return Manifest.model_validate(self.read_json(MANIFEST))


class StageRun:
    """One stage's claim on its output directory, from the first check to the manifest."""

    def __init__(self, stage: str, config: Config, out: str, inputs: dict[str, str] | None = None) -> None:
        """Claim `out` for this config and these inputs.

        After construction `finished` is the manifest when the same work is already done, else None.

        Raises:
            UserError: `out` cannot be written, or belongs to a run with another config or other inputs.
        """
        self.stage, self.config, self.inputs = stage, config, dict(inputs or {})
        self.store = Store(out)
        self.store.check_writable()
        claim = {"stage": stage, "config": identity(config), "inputs": self.inputs}
        if self.store.exists(STARTED):
            self._refuse_other(self.store.read_json(STARTED), claim)
        else:
            self.store.write_json(STARTED, claim)
        self.finished = self.store.manifest()

    def _refuse_other(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        changed = [f"{key}: {a!r} -> {b!r}" for key, a, b in _differences(old, json.loads(json.dumps(new)))]
        if changed:
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise UserError(
                f"{self.store.url} holds a run with other settings ({'; '.join(changed[:4])}{more}); "
                "choose another out=, or remove that directory"
            )

    def write_rows(self, tables: Iterable[pa.Table]) -> int:
        """Merge unit tables, in the order given, into data/part-NNNNN.parquet shards; returns the row count."""
        self.store.remove("data")
        shard: list[pa.Table] = []
        rows, total, index = 0, 0, 0

        def flush() -> None:
            nonlocal shard, rows, index
            self.store.write_table(f"data/part-{index:05d}.parquet", pa.concat_tables(shard).combine_chunks())
            shard, rows, index = [], 0, index + 1

        for table in tables:
            shard.append(table)
            rows, total = rows + table.num_rows, total + table.num_rows
            if rows >= SHARD_ROWS:
                flush()
        if shard:
            flush()
        return total

    def finish(
        self,
        rows: int,
        *,
        timing: dict[str, Any] | None = None,
        folders: Sequence[str] = ("data",),
        files: Sequence[str] = (),
        **facts: Any,
    ) -> Manifest:
        """Write timing.json and then the manifest, which makes the artefact complete.

        Args:
            rows: number of finished rows.
            folders: folders whose files are the artefact's outputs.
            files: further output files.
            timing: wall-clock facts (seconds, rates); kept apart because they differ between equal runs.
            facts: `model`, `funnel`, `tokens`, `figures` of the manifest.
        """
        names = [f"{folder}/{name}" for folder in folders for name in self.store.names(folder)]
        outputs = {name: self._sha256(name) for name in [*names, *files]}
        manifest = Manifest(
            stage=self.stage,
            config=identity(self.config),
            config_hash=config_hash(self.config),
            inputs=self.inputs,
            outputs=outputs,
            rows=rows,
            versions=versions(),
            **facts,
        )
        self.store.write_json(TIMING, timing or {})
        self.store.write_bytes(MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())
        self.store.remove("parts")
        self.finished = manifest
        return manifest

    def _sha256(self, name: str) -> str:
        return hashlib.sha256(self.store.read_bytes(name)).hexdigest()


def versions(packages: Sequence[str] = ("ray", "torch", "transformers", "vllm", "deepspeed", "peft")) -> dict[str, str]:
    """Installed versions of raylm and of the packages that can change a result."""
    found = {"raylm": __version__}
    for name in packages:
        for distribution in (name, f"{name}-cpu"):
            try:
                found[name] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def _differences(old: Any, new: Any, key: str = "") -> Iterable[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(set(old) | set(new)):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new
