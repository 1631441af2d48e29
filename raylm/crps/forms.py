"""Which forms of reasoning succeed: learned from right and wrong paths to the same questions, over all trees.

One tree is a small sample: in it a lucky guess looks as good as sound work. Over many trees luck averages out. A form
is a path with its numbers masked. A linear Bradley-Terry model of right against wrong paths **of the same tree** scores
it, so that the difficulty of a question, which its paths share, drops out (source: ours).

    P(a right, b wrong | one of each) = sigmoid(w . (f(a) - f(b))),  f: n-gram counts of the form, scaled to length 1
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from raylm.crps import pairs
from raylm.records import Tree

NGRAMS = (1, 3)
FEATURES = 4096
"""n-grams kept, the most frequent ones."""
PER_TREE = 8
LIMIT = 50_000
"""(right, wrong) pairs that are learned from, at most."""
ENOUGH = 32
"""Pairs below which nothing is learned."""
_TOKEN = re.compile(r"[a-z]+|\n|[^\sa-z]")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def form(text: str) -> str:
    """A text with its numbers masked, in lower case: `12 - 5 = 7` as `# - # = #`."""
    return _NUMBER.sub("#", text.strip().lower())


@dataclass(frozen=True, slots=True)
class Forms:
    """Scores paths by their form."""

    weights: dict[str, float]
    """Log-odds by n-gram, its tokens joined by blanks. Empty when there was too little to learn from."""
    learned_from: int = 0
    """(right, wrong) pairs that it was learned from."""
    floor: float | None = None
    """Anchors with a lower score are left out; None leaves none out."""

    @classmethod
    def fit(cls, trees: Iterable[Tree], seed: int = 0, keep: float = 1.0, count: int | None = None) -> Forms:
        """Learn from up to PER_TREE pairs of every tree, drawn with `seed`.

        Args:
            trees: explored trees; they are passed over once.
            seed: of the draw.
            keep: share of the trees with a right path whose best form is not below the floor.
            count: how many trees there are; with it, fewer are taken of each where they would exceed LIMIT.
        """
        every = count or 0
        per_tree = max(1, min(PER_TREE, LIMIT // max(1, every)))
        good: list[str] = []
        bad: list[str] = []
        right_paths: list[list[str]] = []
        for tree in trees:
            draw = _generator(seed, tree.problem_id)
            if every * per_tree > LIMIT and draw.random() > LIMIT / (every * per_tree):
                continue
            right, wrong = pairs.paths(tree, "correct"), pairs.paths(tree, "wrong")
            both = [(first.text, second.text) for first in right for second in wrong]
            for place in draw.permutation(len(both))[:per_tree]:
                good.append(both[place][0])
                bad.append(both[place][1])
            if right and keep < 1:
                right_paths.append([path.text for path in right])
        if len(good) < ENOUGH:
            return cls({}, len(good))
        learned = cls(_weights(good, bad), len(good))
        if keep == 1:
            return learned
        best = [max(learned.scores(texts)) for texts in right_paths]
        return cls(learned.weights, len(good), float(np.quantile(best, 1 - keep)))

    def scores(self, texts: Sequence[str]) -> list[float]:
        """The log-odds of each text: of two answers to one question, the higher is likelier to be right."""
        return [self._score(text) for text in texts]

    def rank(self, path: pairs.Path) -> tuple[Any, ...]:
        """Sort key that puts the best form first."""
        return (-self._score(path.text), path.length, path.nodes)

    def poor(self, path: pairs.Path) -> bool:
        """Whether a path lies below the floor."""
        return self.floor is not None and self._score(path.text) < self.floor

    def as_json(self) -> dict[str, Any]:
        """Plain data, for `of_json`; the strongest n-grams come first."""
        ordered = sorted(self.weights.items(), key=lambda item: (-abs(item[1]), item[0]))
        return {"learned_from": self.learned_from, "floor": self.floor, "weights": dict(ordered)}

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> Forms:
        """What `as_json` gave."""
        return cls(data["weights"], data["learned_from"], data["floor"])

    def _score(self, text: str) -> float:
        counts: dict[str, int] = {}
        for gram in _grams(text):
            if gram in self.weights:
                counts[gram] = counts.get(gram, 0) + 1
        length = sum(count * count for count in counts.values()) ** 0.5
        total = sum(self.weights[gram] * count for gram, count in sorted(counts.items()))
        return round(total / length, 9) if length else 0.0


def _weights(good: Sequence[str], bad: Sequence[str]) -> dict[str, float]:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import normalize

    counter = CountVectorizer(analyzer=_grams, max_features=FEATURES)
    counts = normalize(counter.fit_transform([*good, *bad]).astype(np.float64))
    gap = counts[: len(good)] - counts[len(good) :]
    sign = np.where(np.arange(len(good)) % 2, -1.0, 1.0)  # the model needs both outcomes; which is which is alike
    fitted = LogisticRegression(fit_intercept=False, max_iter=1_000).fit(sparse.diags(sign) @ gap, sign > 0)
    # Rounded, so that a last bit that another processor computes otherwise changes no anchor.
    weights = {gram: round(float(fitted.coef_[0][place]), 6) for gram, place in counter.vocabulary_.items()}
    return dict(sorted(weights.items()))


def _grams(text: str) -> list[str]:
    tokens = _TOKEN.findall(form(text))
    low, high = NGRAMS
    return [
        " ".join(tokens[start : start + size])
        for size in range(low, high + 1)
        for start in range(len(tokens) - size + 1)
    ]


def _generator(seed: int, problem_id: str) -> np.random.Generator:
    digest = hashlib.sha256(f"forms/{seed}/{problem_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
