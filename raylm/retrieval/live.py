"""An index that is searched while it changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from raylm.retrieval.index import Index

if TYPE_CHECKING:
    from raylm.retrieval.encoder import Encoder


class LiveIndex:
    """The current version of an index: readers take it and go on with it, one writer at a time puts the next.

    A search never waits for a writer and sees a change whole or not at all. What `save_to` names is written before a
    change is visible, so that what a caller has been told of survives a restart.
    """

    def __init__(self, index: Index, save_to: str = "") -> None:
        """Begin with a version; `save_to` is a directory, empty keeps changes in memory alone."""
        self._current, self._save_to = index, save_to
        self._writing = threading.Lock()

    @property
    def current(self) -> Index:
        """The newest version; keep it for as long as answers must fit together."""
        return self._current

    def add(
        self, ids: Sequence[str], texts: Sequence[str], vectors: np.ndarray, *, encoder: Encoder | str | None = None
    ) -> Index:
        """Put in or replace documents; arguments and errors as `Index.add`."""
        return self._change(lambda index: index.add(ids, texts, vectors, encoder=encoder))

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Take documents out; the ids that were not there."""
        unknown: list[str] = []

        def change(index: Index) -> Index:
            found, missing = index.delete(ids)
            unknown.extend(missing)
            return found

        self._change(change)
        return unknown

    def replace(self, index: Index) -> None:
        """Put another index in place of this one, such as one that was built anew."""
        self._change(lambda _: index)

    def _change(self, function: Callable[[Index], Index]) -> Index:
        with self._writing:
            found = function(self._current)
            if self._save_to:
                found.save(self._save_to)
            self._current = found
            return found
