"""Models by name: loaded when first asked for, verified, replaced while they serve, and let go when others are wanted.

A model's files are looked at again and again. When they have changed, the new ones are verified and loaded beside the
old model, which then gives way at once; when they are damaged, the old model goes on serving and the error is shown.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from raylm.errors import UserError
from raylm.serve.logs import event
from raylm.storage import MANIFEST

T = TypeVar("T")


@dataclass(frozen=True)
class Source(Generic[T]):
    """Where a model comes from."""

    load: Callable[[], T]
    """Reads and verifies it; whatever it raises, the files are not served."""
    paths: tuple[Path, ...]
    """Files and directories it is read from; none for a model that cannot change."""


class Versions(Generic[T]):
    """Some models by name, at most `most` of them in memory. Thread-safe."""

    def __init__(self, sources: Mapping[str, Source[T]], most: int, loaded: Callable[[str, str], None]) -> None:
        """Know the sources; nothing is loaded yet.

        Args:
            sources: by name.
            most: that are kept in memory.
            loaded: is told the name and the outcome (`new`, `failed`) of every load.
        """
        self.sources, self.most, self._loaded = dict(sources), most, loaded
        self.errors: dict[str, str] = {}
        """Why the newest files of a model are not served, by name."""
        self._models: OrderedDict[str, tuple[str, T]] = OrderedDict()
        self._lock = Lock()

    def get(self, name: str) -> T:
        """The present version, loaded if it is not in memory.

        Raises:
            UserError: it cannot be loaded.
            KeyError: there is no such source.
        """
        with self._lock:
            if name not in self._models:
                self._load(name, stamp(self.sources[name].paths))
            self._models.move_to_end(name)
            while len(self._models) > self.most:
                self._models.popitem(last=False)
            return self._models[name][1]

    def peek(self, name: str) -> T | None:
        """The version that is in memory."""
        found = self._models.get(name)
        return found[1] if found else None

    def refresh(self) -> None:
        """Load what has changed on disk. A model that cannot be loaded stays as it was."""
        for name, (seen, _) in list(self._models.items()):
            now = stamp(self.sources[name].paths)
            if now == seen:
                continue
            try:
                self._load(name, now)
            except UserError as error:
                with self._lock:
                    if name in self._models:
                        self._models[name] = (now, self._models[name][1])  # looked at again when files change again
                event("load_failed", level=logging.WARNING, model=name, error=str(error))

    def _load(self, name: str, now: str) -> None:
        try:
            model = self.sources[name].load()
        except Exception as error:  # damaged files raise whatever their reader does; the old version must stay
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {str(error)[:200]}"
            self.errors[name] = said
            self._loaded(name, "failed")
            raise UserError(f"model {name}: {said}") from error
        self.errors.pop(name, None)
        self._models[name] = (now, model)
        self._loaded(name, "new")
        event("loaded", model=name)


def stamp(paths: tuple[Path, ...]) -> str:
    """Changes when a file below some paths does: names, sizes, times and inodes."""
    digest = hashlib.sha256()
    for path in paths:
        real = path.resolve()  # a link that is pointed elsewhere is a new version
        digest.update(str(real).encode())
        files = [real] if real.is_file() else sorted(item for item in real.rglob("*") if item.is_file())
        for file in files:
            try:
                facts = os.stat(file)
            except FileNotFoundError:
                continue
            digest.update(f"{file}{facts.st_size}{facts.st_mtime_ns}{facts.st_ino}".encode())
    return digest.hexdigest()


def verify(path: Path) -> None:
    """Compare a model's files with the SHA-256 digests in the manifest of the stage that wrote them, if there is one.

    Raises:
        UserError: a file is not what the stage wrote, or is missing.
    """
    for root in (path, path.parent):
        if not (root / MANIFEST).is_file():
            continue
        outputs = json.loads((root / MANIFEST).read_text()).get("outputs") or {}
        for name, expected in outputs.items():
            file = root / name
            if path not in file.parents or not isinstance(expected, str):
                continue
            if not file.is_file():
                raise UserError(f"{file}: missing; copy the model again")
            if _sha256(file) != expected:
                raise UserError(f"{file}: not the file that was written (its SHA-256 differs); copy the model again")
        return


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
