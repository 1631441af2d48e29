"""What an index is made of, and what its documents must be like."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from raylm.errors import UserError
from raylm.retrieval.ann import Ann
from raylm.retrieval.lexical import Lexical

if TYPE_CHECKING:
    from raylm.retrieval.encoder import Encoder


@dataclass(frozen=True)
class Source:
    """The encoder that an index is of."""

    name: str
    hash: str
    """As `Encoder.hash`."""
    revision: str = ""
    """Commit of a hub model."""
    max_length: int | None = None
    """Tokens of a text that are read; None is what the encoder's directory says."""

    @classmethod
    def of(cls, encoder: Encoder, name: str, revision: str | None = None) -> Source:
        """An encoder that was loaded by this name."""
        place = os.path.abspath(name) if os.path.isdir(name) else name
        return cls(place, encoder.hash, revision or "", encoder.max_length)


@dataclass(frozen=True)
class Base:
    """The built part; rows are documents."""

    ids: np.ndarray
    """[rows], strings as objects."""
    texts: Sequence[str]
    places: dict[str, int]
    """Row of every id."""
    ann: Ann
    lexical: Lexical
    stored: dict[str, str] = field(default_factory=dict)
    """File to its SHA-256, once they are known."""


@dataclass(frozen=True)
class Tail:
    """What came since."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    vectors: np.ndarray
    """[documents, dimension] float32."""
    counts: tuple[Counter[str], ...]
    """Words of each document."""


def no_tail(dimension: int) -> Tail:
    """Nothing added yet."""
    return Tail((), (), np.zeros((0, dimension), np.float32), ())


def check_ids(ids: Sequence[str], texts: Sequence[str], vectors: int) -> None:
    """Refuse documents that lack something or are there twice.

    Raises:
        UserError: counts that differ, or an id that is repeated.
    """
    if not len(ids) == len(texts) == vectors:
        raise UserError(f"{len(ids)} ids, {len(texts)} texts and {vectors} vectors; each document needs one of each")
    if len(set(ids)) < len(ids):
        twice = [name for name, count in Counter(ids).items() if count > 1]
        raise UserError(f"{len(twice)} document ids are there more than once, such as {twice[0]}; ids must differ")


def unit(vectors: np.ndarray, ids: Sequence[str], dimension: int | None) -> np.ndarray:
    """Vectors as float32 of length 1.

    Raises:
        UserError: no matrix, another dimension, or a row that is zero or not finite; names it.
    """
    if vectors.ndim != 2 or (dimension is not None and vectors.shape[1] != dimension):
        wanted = f"[vectors, {dimension}]" if dimension is not None else "[vectors, dimension]"
        raise UserError(f"vectors of shape {list(vectors.shape)}; this index takes {wanted}")
    found = np.ascontiguousarray(vectors, dtype=np.float32)
    if len(found) == 1 and abs(float(found[0].dot(found[0])) - 1.0) < 1e-5:
        return found
    squares = np.einsum("nd,nd->n", found, found)
    good = np.abs(squares - 1.0) < 1e-5
    if good.all():
        return found
    lengths = np.sqrt(squares)
    broken = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 1e-12)))
    if len(broken):
        named = f"document {ids[broken[0]]}" if len(ids) else f"vector {broken[0]}"
        raise UserError(f"{len(broken)} vectors are zero or not finite, first that of {named}; encode it again")
    return found / lengths[:, None]
