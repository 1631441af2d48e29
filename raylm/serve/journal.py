"""A log of upserts and deletes that survives the death of any replica.

One append-only file that all replicas of a retriever share. Whoever writes takes a lock, appends, and waits for the
disk (fsync) before the client hears of it. Every replica reads what is new before it searches, so a write that was
acknowledged is found by every search that begins afterwards, whichever replica answers. A replica that starts reads
all of it. Lines carry a checksum; a line that a killed writer left unfinished was never acknowledged and is cut off by
the next one. Vectors are kept with their texts, so that only the writer encodes; with another encoder texts are encoded
anew. Replaced lines are dropped when they are the larger part. The disk must have POSIX locks: a local one for replicas
on one node, a shared volume (NFS 4, CephFS, EFS) for more.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from raylm.errors import UserError

CURRENT, LOCK = "CURRENT", "lock"
COMPACT = 10_000
"""Replaced documents beyond which the log is written anew, when they are also more than those that count."""


@dataclass(frozen=True)
class Entry:
    """Documents that were upserted, or ids that were deleted when `texts` is None."""

    ids: tuple[str, ...]
    texts: tuple[str, ...] | None = None
    encoder: str = ""
    """Hash of the encoder of the vectors."""
    vectors: np.ndarray | None = None
    """[documents, dimension] float32."""

    def line(self) -> bytes:
        """With a checksum before and a line break after it."""
        said: dict[str, Any] = {"ids": self.ids}
        if self.texts is not None:
            assert self.vectors is not None
            data = base64.b64encode(np.ascontiguousarray(self.vectors, "<f4").tobytes()).decode()
            said |= {"texts": self.texts, "encoder": self.encoder, "vectors": data}
        body = json.dumps(said).encode()
        return b"%08x %s\n" % (zlib.crc32(body), body)

    def only(self, place: int) -> Entry:
        """One of its documents."""
        if self.texts is None or self.vectors is None:
            return Entry((self.ids[place],))
        return Entry((self.ids[place],), (self.texts[place],), self.encoder, self.vectors[place : place + 1])


class Journal:
    """The log, and how far this process has read it."""

    def __init__(self, path: str | Path) -> None:
        """Open or begin the log in a directory.

        Raises:
            UserError: the directory cannot be written.
        """
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._locked():
                if not (self.path / CURRENT).exists():
                    self._begin("log-000000", b"")
        except OSError as error:
            raise UserError(f"journal={path}: cannot be written ({error.strerror}); give another directory") from None
        self._name, self._offset = "", 0
        self._ids: set[str] = set()
        self._documents = 0

    def append(self, entries: Sequence[Entry]) -> None:
        """Have entries on disk. Either all of them are there afterwards, or an error is raised.

        Raises:
            OSError: the disk is full or away; nothing was written.
        """
        lines = b"".join(entry.line() for entry in entries)
        with self._locked(), (self.path / self._current()).open("r+b") as stream:
            end = _whole(stream)
            stream.truncate(end)
            stream.seek(end)
            try:
                stream.write(lines)
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(end)
                raise

    def read(self) -> list[Entry]:
        """Entries since the last call; all of them at the first, or again after the log was written anew.

        Raises:
            UserError: a line is damaged.
        """
        while True:
            name = self._current()
            offset = self._offset if name == self._name else 0
            file = self.path / name
            try:
                if file.stat().st_size == offset:  # nothing new: what nearly every search finds
                    return []
                with file.open("rb") as stream:
                    stream.seek(offset)
                    data = stream.read()
            except FileNotFoundError:  # written anew in between
                continue
            data = data[: data.rfind(b"\n") + 1]
            entries = [_entry(line, file, offset) for line in data.splitlines()]
            if name != self._name:
                self._name, self._ids, self._documents = name, set(), 0
            self._offset = offset + len(data)
            for entry in entries:
                self._ids.update(entry.ids)
                self._documents += len(entry.ids)
            return entries

    def compact(self, least: int = COMPACT) -> bool:
        """Write the log anew without what was replaced, if that is at least `least` documents and more than half."""
        if self._documents - len(self._ids) < max(least, len(self._ids)):
            return False
        with self._locked():
            old = self._current()
            file = self.path / old
            last: dict[str, Entry] = {}
            for line in file.read_bytes().splitlines():
                entry = _entry(line, file, 0)
                last.update((id, entry.only(place)) for place, id in enumerate(entry.ids))
            lines = b"".join(entry.line() for entry in last.values())
            self._begin(f"log-{int(old.partition('-')[2]) + 1:06d}", lines)
            file.unlink()
        return True

    def _current(self) -> str:
        return (self.path / CURRENT).read_text()

    def _begin(self, name: str, lines: bytes) -> None:
        """Write a log and make it the current one; the order survives a power cut."""
        for file, data in ((name, lines), (CURRENT, name.encode())):
            scratch = self.path / f".{file}"
            with scratch.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            scratch.rename(self.path / file)
            folder = os.open(self.path, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.path / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _whole(stream: BinaryIO) -> int:
    """Bytes up to the end of the last whole line."""
    end = stream.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - (1 << 16))
        stream.seek(start)
        found = stream.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _entry(line: bytes, file: Path, offset: int) -> Entry:
    checksum, _, body = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        raise UserError(f"{file}: a line after byte {offset} is damaged; restore the file from a backup")
    said = json.loads(body)
    if "texts" not in said:
        return Entry(tuple(said["ids"]))
    vectors = np.frombuffer(base64.b64decode(said["vectors"]), "<f4").reshape(len(said["ids"]), -1)
    return Entry(tuple(said["ids"]), tuple(said["texts"]), said["encoder"], vectors)
