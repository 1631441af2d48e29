"""An index that is searched while it changes, and built again beside that."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from raylm.retrieval.index import Index

if TYPE_CHECKING:
    from raylm.retrieval.encoder import Encoder

Change = Callable[[Index], Index]
_log = logging.getLogger(__name__)


class LiveIndex:
    """The current version of an index: readers take it and go on with it, one writer at a time puts the next.

    A search never waits for a writer and sees a change whole or not at all; neither of them waits for the building that
    a crowded index needs, which a thread of its own does from the version of that moment; what has changed meanwhile is
    done once more, to what was built. What `save_to` names is written before a change is visible, so that what a caller
    has been told of survives a restart.
    """

    def __init__(self, index: Index, save_to: str = "") -> None:
        """Begin with a version; `save_to` is a directory, empty keeps changes in memory alone."""
        self._current, self._save_to = index, save_to
        self._writing = threading.Lock()
        self._builder: threading.Thread | None = None
        self._since: list[Change] = []
        """What was done since the builder began."""
        self._patience = 0
        """Changes that may wait before the next attempt, after one that failed."""

    @property
    def current(self) -> Index:
        """The newest version; keep it for as long as answers must fit together."""
        return self._current

    def add(
        self, ids: Sequence[str], texts: Sequence[str], vectors: np.ndarray, *, encoder: Encoder | str | None = None
    ) -> Index:
        """Put in or replace documents; arguments and errors as `Index.add`."""
        return self.change(lambda index: index.add(ids, texts, vectors, encoder=encoder, settle=False))

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Take documents out; the ids that were not there."""
        unknown: list[str] = []

        def change(index: Index) -> Index:
            found, unknown[:] = index.delete(ids, settle=False)
            return found

        self.change(change)
        return list(unknown)

    def replace(self, index: Index) -> None:
        """Put another index in place of this one, such as one that was built anew."""
        with self._writing:
            self._put(index)
            self._builder, self._since = None, []  # what is being built has no use any more

    def change(self, function: Change) -> Index:
        """Put what a function makes of the current version.

        Args:
            function: done a second time where a version is being built meanwhile, so it may depend on its argument
                alone; should not build anything itself (`settle=False`).
        """
        with self._writing:
            found = function(self._current)
            self._put(found)
            if self._builder is not None:
                self._since.append(function)
            elif found.crowded and found.waiting > self._patience:
                self._builder = threading.Thread(target=self._build, args=(found,), name="raylm-index", daemon=True)
                self._builder.start()
            return found

    def settle(self) -> Index:
        """The current version, after the building that goes on has ended."""
        while (builder := self._builder) is not None:
            builder.join()
        return self._current

    def _build(self, index: Index) -> None:
        mine = threading.current_thread()
        try:
            built = index.compacted()
            with self._writing:
                if self._builder is not mine:
                    return
                for function in self._since:
                    built = function(built)
                self._put(built)
                self._patience = 0
        except Exception:
            _log.exception("the index could not be built again; it goes on with %d changes waiting", index.waiting)
            self._patience = 2 * index.waiting
        finally:
            with self._writing:
                if self._builder is mine:
                    self._builder, self._since = None, []

    def _put(self, index: Index) -> None:
        if self._save_to:
            index.save(self._save_to)
        self._current = index
