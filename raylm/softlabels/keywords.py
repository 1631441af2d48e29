"""Relevance of labels to texts through their words, as sparse matrix products (keyword-based label smoothing, KWLS).

A label's words are those of its texts (in retrieval: of the candidate document). With tf_i(w) a label's counts, f_x(w)
those of a text, len_i a label's length and avg the mean of them, over |L| labels and N texts (source: released code):

    wlr_i(w) = tf_i(w) k1 / (tf_i(w) + K_i) (ln(|L| / #labels with w) + 1),  K_i = k1 (1 - b + b len_i / avg)
    wir_x(w) = (ln(N / df(w)) + 1) f_x(w) k2 / (f_x(w) + k2)
    score_i(x) = sum over the words w of x of wlr_i(w) wir_x(w)

A training text is part of its own label's words, which the published form counts: on small data its score is mostly
that of a text with itself. Leave-one-out takes it out of tf, len, df, N and the number of labels with a word; avg, a
mere scale, stays (source: our choice).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from raylm.softlabels.words import Vocabulary

K1, B, K2 = 2.0, 0.75, 2.0
"""Saturation of a label's counts, weight of its length, saturation of a text's counts (source: released code)."""


@dataclass(frozen=True)
class KeywordTable:
    """Counts of training texts and their labels."""

    vocabulary: Vocabulary
    texts: sparse.csr_matrix
    """[texts, words]."""
    gold: np.ndarray
    """[texts], the label of each, int."""
    labels: sparse.csr_matrix
    """[labels, words]: the summed counts of each label's texts."""
    k1: float = K1
    b: float = B
    k2: float = K2

    @classmethod
    def of(
        cls, texts: Sequence[str], gold: Sequence[int], count: int, vocabulary: Vocabulary, **constants: float
    ) -> KeywordTable:
        """Statistics of texts with their gold labels, of which there are `count`."""
        found = vocabulary.counts(texts)
        where = np.asarray(gold, dtype=np.int64)
        return cls(vocabulary, found, where, (_members(where, count) @ found).tocsr(), **constants)

    def scores(self, texts: sparse.csr_matrix | None = None, *, leave_one_out: bool = True) -> np.ndarray:
        """Relevance of every label to every text, [texts, labels], not negative.

        Args:
            texts: counts of other texts than those of the table, with this vocabulary; None scores its own.
            leave_one_out: score the table's own texts as if each was not among them; the published form is without.
        """
        if texts is None and leave_one_out:
            return self._left_out()
        counts = self.texts if texts is None else texts
        weights = self._text_weights(counts, self._frequency()[counts.indices], self.texts.shape[0])
        with_word = np.asarray((self.labels > 0).sum(0)).ravel()
        weights.data *= self._rarity(with_word[weights.indices])
        return np.asarray((weights @ self._saturated().T).todense())

    def similarities(self, texts: sparse.csr_matrix | None = None, *, leave_one_out: bool = True) -> np.ndarray:
        """Cosine of texts with the mean text of every label by TF-IDF, [texts, labels]; arguments as in `scores`.

        Leave-one-out takes a text out of its label's sum of TF-IDF vectors; document frequencies stay.
        """
        rarity = np.log((1 + self.texts.shape[0]) / (1 + self._frequency())) + 1
        own = _unit(self.texts.multiply(rarity).tocsr())
        members = sparse.csr_matrix(
            (np.ones(len(self.gold)), (self.gold, np.arange(len(self.gold)))),
            shape=(self.labels.shape[0], len(self.gold)),
        )
        sums = (members @ own).tocsr()
        asked = own if texts is None else _unit(texts.multiply(rarity).tocsr())
        products = np.asarray((asked @ sums.T).todense())
        lengths = np.tile(np.sqrt(np.asarray(sums.multiply(sums).sum(1)).ravel()), (len(products), 1))
        if texts is None and leave_one_out:
            rows = np.arange(len(self.gold))
            there = np.asarray(own.multiply(own).sum(1)).ravel()  # 1, or 0 for a text without words
            before = products[rows, self.gold]
            squares = lengths[rows, self.gold] ** 2 - 2 * before + there
            products[rows, self.gold] = before - there
            lengths[rows, self.gold] = np.sqrt(np.maximum(squares, 0.0))
        return np.where(lengths > 1e-9, products / np.maximum(lengths, 1e-9), 0.0)

    def keywords(self, label: int, most: int = 10) -> list[tuple[str, float]]:
        """The words with the highest weight wlr for a label."""
        row = self._saturated()[label]
        with_word = np.asarray((self.labels > 0).sum(0)).ravel()
        weights = row.data * self._rarity(with_word[row.indices])
        order = np.argsort(-weights, kind="stable")[:most]
        return [(self.vocabulary.words[row.indices[place]], float(weights[place])) for place in order]

    def _frequency(self) -> np.ndarray:
        return np.bincount(self.texts.indices, minlength=self.texts.shape[1]).astype(float)

    def _lengths(self) -> np.ndarray:
        return np.asarray(self.labels.sum(1)).ravel()

    def _norm(self, lengths: np.ndarray) -> np.ndarray:
        """K_i of labels of some lengths."""
        average = max(float(self._lengths().mean()), 1.0)
        return self.k1 * (1 - self.b + self.b * lengths / average)

    def _saturated(self) -> sparse.csr_matrix:
        """tf k1 / (tf + K_i), [labels, words]."""
        found = self.labels.astype(float).tocsr(copy=True)
        norms = np.repeat(self._norm(self._lengths()), np.diff(found.indptr))
        found.data = found.data * self.k1 / (found.data + norms)
        return found

    def _rarity(self, with_word: np.ndarray) -> np.ndarray:
        """ln(|L| / #labels with w) + 1; 0 where no label has it."""
        safe = np.maximum(with_word, 1)
        return np.where(with_word > 0, np.log(self.labels.shape[0] / safe) + 1, 0.0)

    def _text_weights(self, counts: sparse.csr_matrix, frequency: np.ndarray, total: int) -> sparse.csr_matrix:
        """wir of the words that texts hold; `frequency` is df of each entry; 0 for words of no other text."""
        found = counts.astype(float).tocsr(copy=True)
        safe = np.maximum(frequency, 1)
        weight = np.where(frequency > 0, np.log(max(total, 1) / safe) + 1, 0.0)
        found.data = weight * found.data * self.k2 / (found.data + self.k2)
        return found

    def _left_out(self) -> np.ndarray:
        counts = self.texts
        rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        gold = self.gold[rows]
        own = np.asarray(self.labels[gold, counts.indices]).ravel()
        left = own - counts.data
        weights = self._text_weights(counts, self._frequency()[counts.indices] - 1, counts.shape[0] - 1)
        with_word = np.asarray((self.labels > 0).sum(0)).ravel()[counts.indices] - (left == 0)
        weights.data *= self._rarity(with_word)
        saturated = self._saturated()
        scores = np.asarray((weights @ saturated.T).todense())
        lengths = self._lengths()
        text_lengths = np.asarray(counts.sum(1)).ravel()
        norms = self._norm(lengths[self.gold] - text_lengths)[rows]
        without = np.where(left > 0, left * self.k1 / np.where(left > 0, left + norms, 1.0), 0.0)
        fixed = np.bincount(rows, weights.data * without, minlength=counts.shape[0])
        scores[np.arange(counts.shape[0]), self.gold] = fixed
        return scores


def _members(gold: np.ndarray, labels: int) -> sparse.csr_matrix:
    """Which texts are of a label, [labels, texts]."""
    return sparse.csr_matrix((np.ones(len(gold)), (gold, np.arange(len(gold)))), shape=(labels, len(gold)))


def _unit(rows: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows of length 1; empty ones stay."""
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
    return (sparse.diags(1 / np.maximum(norms, 1e-12)) @ rows).tocsr()
