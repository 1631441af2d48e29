"""Nearest vectors by inner product with faiss: exact, by inverted lists, or on a graph of neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from raylm.errors import UserError
from raylm.retrieval.index_config import IndexSettings

FLAT_LIMIT = 50_000
"""Vectors up to which the exact search is fast enough, so that auto takes it (measured: flat 100, hnsw 4,000 queries a
second for 100,000 vectors of 384 coordinates)."""
_PER_LIST = 64
"""Vectors a list that ivf's lists are trained on; faiss warns below 39."""


@dataclass(frozen=True)
class Ann:
    """A faiss index over rows 0, 1, ..., which nothing changes once it is built: any number of threads may search."""

    kind: str
    """flat, ivf or hnsw."""
    index: Any
    """The faiss index."""

    @classmethod
    def build(cls, vectors: np.ndarray, settings: IndexSettings, seed: int = 0) -> Ann:
        """Index unit vectors, [rows, dimension] float32."""
        rows, dimension = vectors.shape
        kind = settings.kind
        if kind == "auto":
            kind = "flat" if rows <= FLAT_LIMIT else "hnsw"
        if kind == "ivf":
            index = _ivf(vectors, settings, seed)
        elif kind == "hnsw":
            index = faiss.IndexHNSWFlat(dimension, settings.links, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction, index.hnsw.efSearch = settings.build_width, settings.search_width
        else:
            index = faiss.IndexFlatIP(dimension)
        if rows:
            index.add(vectors)
        return cls(kind, index)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def search(self, vectors: np.ndarray, k: int, dead: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The nearest rows and their inner products, [queries, k] each; row -1 where there are fewer.

        Args:
            vectors: [queries, dimension] float32.
            k: at most as many as there are rows.
            dead: bits of the rows that must not be found, packed little-endian as `packed` does.
        """
        scores, rows = np.empty((len(vectors), k), np.float32), np.empty((len(vectors), k), np.int64)
        chosen = None if dead is None else self._without(dead)
        # What faiss' own `search` calls after checks that every caller of this has made.
        self.index.search_c(
            len(vectors), faiss.swig_ptr(vectors), k, faiss.swig_ptr(scores), faiss.swig_ptr(rows), chosen
        )
        return rows, scores

    def vectors(self) -> np.ndarray:
        """All vectors, [rows, dimension]."""
        if self.kind == "ivf" and self.index.direct_map.type == faiss.DirectMap.NoMap:
            self.index.make_direct_map()
        return self.index.reconstruct_n(0, len(self)) if len(self) else np.zeros((0, self.index.d), np.float32)

    def recall(self, queries: np.ndarray, k: int = 10) -> float:
        """Mean share of the exact k nearest that the search finds; what is as near as the k-th counts as found."""
        k = min(k, len(self))
        if self.kind == "flat" or not len(queries) or not k:
            return 1.0
        exact = np.sort(queries @ self.vectors().T, axis=1)[:, -k]
        rows, scores = self.search(queries, k)
        return float(((rows >= 0) & (scores >= exact[:, None] - 1e-5)).mean())

    def to_bytes(self) -> bytes:
        """The index as faiss writes it."""
        return faiss.serialize_index(self.index).tobytes()

    @classmethod
    def from_bytes(cls, kind: str, data: bytes, where: str) -> Ann:
        """Read what `to_bytes` gave; its checksum must have been checked before.

        Raises:
            UserError: faiss cannot read it.
        """
        try:
            index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        except RuntimeError as error:
            raise UserError(f"{where}: not an index of faiss {faiss.__version__} ({error}); build it again") from None
        return cls(kind, index)

    def _without(self, dead: np.ndarray) -> Any:
        """Search parameters that leave rows out; they hold all that the search looks at, for there are no defaults."""
        selector = faiss.IDSelectorNot(faiss.IDSelectorBitmap(dead))
        if self.kind == "ivf":
            return faiss.SearchParametersIVF(sel=selector, nprobe=self.index.nprobe)
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(sel=selector, efSearch=self.index.hnsw.efSearch)
        return faiss.SearchParameters(sel=selector)


def packed(rows: frozenset[int], count: int) -> np.ndarray | None:
    """A bit a row, set for those given; None where there are none."""
    if not rows:
        return None
    bits = np.zeros(count, bool)
    bits[list(rows)] = True
    return np.packbits(bits, bitorder="little")


def _ivf(vectors: np.ndarray, settings: IndexSettings, seed: int) -> Any:
    rows, dimension = vectors.shape
    lists = min(settings.lists or max(1, int(4 * rows**0.5)), max(1, rows // 39)) if rows else 1
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.max_points_per_centroid = seed, _PER_LIST
    index.cp.min_points_per_centroid = 1  # small collections have few; faiss would write a warning to the terminal
    if rows:
        index.train(vectors)
    index.nprobe = min(settings.probes or max(8, lists // 8), lists)
    return index
