"""Support of a response by documents of an index: the branch `retrieval`."""

from __future__ import annotations

from typing import Any

from raylm.errors import UserError
from raylm.srm.tools import content_words

PASSAGES = 3
"""Documents that may support a response."""


class Evidence:
    """Share of a response's content words, names and numbers that the best documents for prompt and response hold.

    Documents are found by words (BM25), so that no encoder has to be loaded.
    """

    def __init__(self, index: str) -> None:
        """Open an index.

        Raises:
            UserError: none is named, or there is none.
        """
        from raylm.retrieval.index import Index

        if not index:
            raise UserError("a retrieval branch needs index=, the directory of an index")
        self.index: Any = Index.open(index)

    def __call__(self, prompt: str, response: str) -> float | None:
        """In [0, 1]; None for a response without content words, or for which no document shares a word."""
        said = set(content_words(response))
        hits = self.index.search_words([f"{prompt} {response}"], PASSAGES)[0]
        if not said or not hits:
            return None
        held = {word for hit in hits for word in content_words(self.index.text(hit.id))}
        return len(said & held) / len(said)
