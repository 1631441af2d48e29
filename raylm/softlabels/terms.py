"""How much each word of a text matters, and a text's vector as the weighted sum of its words' contextual vectors.

e(x) = sum over words t of x of w_t(x) h_t(x), h_t the mean of the token vectors of t (source: our reconstruction).
Sub-words are aggregated to words, and a word's occurrences to one vector, before anything is weighed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from raylm.softlabels.keywords import K1, B


@dataclass(frozen=True)
class Reading:
    """The words of a text, each once, in the order of their first occurrence."""

    words: tuple[str, ...]
    counts: np.ndarray
    """[words], occurrences among what was read."""
    vectors: np.ndarray
    """[words, hidden], means of contextual token vectors."""


def spans(text: str, split: Callable[[str], list[str]]) -> list[tuple[str, int, int]]:
    """The words that `split` finds, with where each begins and ends in the text."""
    found, at, low = [], 0, text.lower()
    if len(low) != len(text):  # a few letters change their length; such a text is compared as it is
        low = text
    for word in split(text):
        start = low.find(word, at)
        if start >= 0:
            at = start + len(word)
            found.append((word, start, at))
    return found


def reading(
    text: str, offsets: Sequence[tuple[int, int]], states: np.ndarray, split: Callable[[str], list[str]]
) -> Reading:
    """Token vectors to words.

    Args:
        text: what was tokenized.
        offsets: where each token lies in it; (0, 0) for special tokens.
        states: [tokens, hidden].
        split: texts to words.

    A token counts for the word that holds its middle; words that were cut off or have no token are left out.
    """
    places = spans(text, split)
    owner = np.full(len(text) + 1, -1)
    order: dict[str, int] = {}
    starts = np.zeros(len(text) + 1, dtype=bool)
    for word, start, end in places:
        owner[start:end] = order.setdefault(word, len(order))
        starts[start] = True
    tokens = [(owner[(begin + end) // 2 if end - begin > 1 else begin], row, begin)
              for row, (begin, end) in enumerate(offsets) if end > begin]  # fmt: skip
    sums, tally, counts = (np.zeros((len(order), states.shape[1])), np.zeros(len(order)), np.zeros(len(order)))
    for word_number, row, begin in tokens:
        if word_number >= 0:
            sums[word_number] += states[row]
            tally[word_number] += 1
            counts[word_number] += starts[begin]
    there = np.flatnonzero(tally)
    names = list(order)
    means = (sums[there] / tally[there, None]).astype(np.float32)
    return Reading(tuple(names[number] for number in there), np.maximum(counts[there], 1), means)


class TermHeads:
    """Linear heads from a word's contextual vector to its weight, one for each fold of the queries (DeepCT's form).

    Least squares to whether a word of a document is in its query, and the other way round, so that the minimiser is the
    query-term recall (source: a related paper, DeepCT); in closed form with a ridge, which needs one pass and no
    vectors in memory (source: our choice).
    """

    def __init__(self, folds: int, width: int, ridge: float = 10.0) -> None:
        """Make heads for vectors of `width` coordinates."""
        self.ridge = ridge
        self.left, self.right = np.zeros((folds, width + 1, width + 1)), np.zeros((folds, width + 1))
        self.weights_ = np.zeros((folds, width + 1))

    def add(self, fold: int, vectors: np.ndarray, targets: np.ndarray) -> None:
        """Take in the words of a text for a query of a fold: vectors [words, width], targets [words] in [0, 1]."""
        rows = np.hstack([vectors, np.ones((len(vectors), 1))])
        self.left[fold] += rows.T @ rows
        self.right[fold] += rows.T @ targets

    def fit(self) -> TermHeads:
        """Solve for the head of each fold without what that fold added; a single fold keeps its own."""
        alone = len(self.left) == 1
        for fold in range(len(self.left)):
            left = self.left.sum(0) - (0 if alone else self.left[fold])
            right = self.right.sum(0) - (0 if alone else self.right[fold])
            self.weights_[fold] = np.linalg.solve(left + self.ridge * np.eye(len(left)), right)
        return self

    def weights(self, vectors: np.ndarray) -> np.ndarray:
        """Of words by each fold's head, [folds, words], at least 0; where all are 0, all are 1."""
        found = np.maximum(self.weights_[:, :-1] @ vectors.T + self.weights_[:, -1:], 0.0)
        return np.where(found.sum(1, keepdims=True) > 0, found, 1.0)


class Statistics:
    """Document frequencies and lengths of a set of documents, for the weights that need no head."""

    def __init__(self, documents: Iterable[Reading]) -> None:
        """Count."""
        self.frequency: dict[str, int] = {}
        self.documents, total = 0, 0.0
        for found in documents:
            self.documents += 1
            total += found.counts.sum()
            for word in found.words:
                self.frequency[word] = self.frequency.get(word, 0) + 1
        self.average = max(total / max(self.documents, 1), 1.0)

    def bm25(self, found: Reading) -> np.ndarray:
        """idf(t) tf (k1 + 1) / (tf + K): a document's part of BM25, [words]."""
        held = np.array([self.frequency.get(word, 0) for word in found.words])
        rarity = np.log(1 + (self.documents - held + 0.5) / (held + 0.5))
        return self._saturated(found, 1.2) * 2.2 * rarity

    def keyword(self, found: Reading) -> np.ndarray:
        """tf k1 / (tf + K) (ln(N / df) + 1): keyword smoothing's weight with each document as a label, [words]."""
        held = np.array([max(self.frequency.get(word, 0), 1) for word in found.words])
        return self._saturated(found, K1) * K1 * (np.log(max(self.documents, 1) / held) + 1)

    def rarity(self, found: Reading) -> np.ndarray:
        """ln(1 + N / df) of a query's words, 0 for those that no document has, [words]."""
        held = np.array([self.frequency.get(word, 0) for word in found.words])
        return np.where(held > 0, np.log(1 + self.documents / np.maximum(held, 1)), 0.0)

    def _saturated(self, found: Reading, k1: float) -> np.ndarray:
        norm = k1 * (1 - B + B * found.counts.sum() / self.average)
        weights: np.ndarray = found.counts / (found.counts + norm)
        return weights


def embedding(found: Reading, weights: np.ndarray) -> np.ndarray:
    """Unit vectors by some weights, [sets, hidden] from [sets, words]; a text without words has the zero vector."""
    summed = weights @ found.vectors
    return summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-12)


class Weighted:
    """Term weights of many texts as sparse rows of length 1."""

    def __init__(self, columns: dict[str, int]) -> None:
        """Collect rows; `columns` numbers the words and grows."""
        self.columns = columns
        self._data: list[np.ndarray] = []
        self._places: list[list[int]] = []

    def add(self, found: Reading, weights: np.ndarray) -> None:
        """The next text."""
        length = np.linalg.norm(weights)
        self._data.append(weights / length if length > 0 else weights)
        self._places.append([self.columns.setdefault(word, len(self.columns)) for word in found.words])

    def matrix(self, width: int) -> sparse.csr_matrix:
        """[texts, width]."""
        starts = np.concatenate([[0], np.cumsum([len(row) for row in self._places])]).astype(np.int64)
        columns = np.array([column for row in self._places for column in row], dtype=np.int64)
        data = np.concatenate(self._data) if self._data else np.zeros(0)
        return sparse.csr_matrix((data, columns, starts), shape=(len(self._places), width))
