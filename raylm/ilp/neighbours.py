"""Samples that ask the same question and give answers that cannot both be right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raylm.ilp.config import RuleConfig
from raylm.ilp.items import Item

FUNCTION_WORDS = frozenset(
    """
    a about an and answer are as ask at be by can could did do does for from give had has have how i in is it its just
    kindly know let like long many me much my name now of on one or our out please question s say shall should so some
    tell than that the their them then there these they this those to us was we were what when where which who whose
    why will with would you your
    """.split()  # noqa: SIM905 - as one reads them
)
"""English words that ask rather than say what is asked about; two paraphrases may differ in them."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two samples, by their places, that ask the same."""

    left: int
    right: int
    similarity: float
    agrees: bool
    """Whether their answers are equal too."""


def same_questions(items: Sequence[Item], vectors: np.ndarray, rules: RuleConfig) -> tuple[list[Pair], np.ndarray]:
    """Pairs of nearest neighbours that ask the same question.

    Only neighbours are compared, by an exact index of inner products: k lookups a sample instead of all pairs. Samples
    without a normal form are in no pair: it takes a reader to say whether two long texts contradict each other.

    Args:
        items: the samples.
        vectors: of their questions, of length 1, [items, dimension] float32.
        rules: similarity, number of neighbours, and whether content words must agree.

    Returns:
        the pairs, each once, and the similarity of each item's nearest neighbour, [items] (0 for a lone item).
    """
    import faiss

    count = min(rules.neighbours + 1, len(items))
    if count < 2:
        return [], np.zeros(len(items))
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    near, places = index.search(vectors, count)
    others = places != np.arange(len(items))[:, None]
    nearest = np.where(others, near, -1.0).max(1).clip(0.0, 1.0)
    words = [content(item.question) for item in items]
    found: dict[tuple[int, int], float] = {}
    for own, (values, row) in enumerate(zip(near, places, strict=True)):
        for value, other in zip(values, row, strict=True):
            left, right = sorted((own, int(other)))
            if left == right or value < rules.similarity or (left, right) in found:
                continue
            if not items[left].normal or not items[right].normal:
                continue
            if rules.same_words and words[left] != words[right]:
                continue
            found[left, right] = float(value)
    pairs = [
        Pair(left, right, value, items[left].normal == items[right].normal)
        for (left, right), value in sorted(found.items())
    ]
    return pairs, nearest


def surroundings(items: Sequence[Item], wanted: set[str], rules: RuleConfig, count: int, seed: int) -> list[int]:
    """Places of what a screen has to look at beside the wanted samples, those included; of all without a screen.

    These are the samples that can contradict a wanted one, which share its content words, and `count` others at random.
    Without `same_words` only vectors tell who can, and all are returned.
    """
    if not rules.same_words or len(wanted) >= len(items):
        return list(range(len(items)))
    words = [content(item.question) for item in items]
    asked = {said for item, said in zip(items, words, strict=True) if item.id in wanted}
    alike = [said in asked for said in words]
    others = np.flatnonzero(np.logical_not(alike))
    drawn = np.random.default_rng([seed, 6]).permutation(others)[:count]
    return sorted({*np.flatnonzero(alike).tolist(), *drawn.tolist()})


def nearest_places(vectors: np.ndarray, wanted: Sequence[int], count: int) -> list[list[int]]:
    """Places of the nearest other vectors of some, nearest first.

    Args:
        vectors: of length 1, [items, dimension] float32.
        wanted: places whose neighbours are looked for.
        count: of neighbours; fewer where there are fewer items.
    """
    import faiss

    if not len(wanted):
        return []
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    _, places = index.search(vectors[list(wanted)], min(count + 1, len(vectors)))
    rows = zip(wanted, places.tolist(), strict=True)
    return [[other for other in row if other != own][:count] for own, row in rows]


def content(question: str) -> frozenset[str]:
    """Numbers and words that say what is asked about, without plural or possessive endings."""
    words = re.findall(r"\d+(?:[.,]\d+)*|[^\W\d_]+", question.casefold())
    return frozenset(word.removesuffix("s") if len(word) > 3 else word for word in words if word not in FUNCTION_WORDS)


def clusters(pairs: Sequence[Pair]) -> list[list[int]]:
    """Places that pairs connect, each cluster and all of them in order."""
    parent: dict[int, int] = {}

    def root(place: int) -> int:
        while parent.setdefault(place, place) != place:
            place = parent[place]
        return place

    for pair in pairs:
        left, right = sorted((root(pair.left), root(pair.right)))
        parent[right] = left
    found: dict[int, list[int]] = {}
    for place in sorted(parent):
        found.setdefault(root(place), []).append(place)
    return [found[first] for first in sorted(found)]


def touched(items: Sequence[Item], pairs: Sequence[Pair], names: set[str]) -> set[str]:
    """Ids of the samples of all clusters that hold one of some samples."""
    members = ({items[place].id for place in cluster} for cluster in clusters(pairs))
    return {name for cluster in members if cluster & names for name in cluster}
