"""How long do keyword soft labels take, beside the plain double loop over texts and labels?

    python -m jobs.bench.softlabels [--texts N] [--labels N] [--words N] [--loop N] [--repeats N]

Texts are drawn from words with Zipf's frequencies, and a label's texts favour its own hundred words. The loop is timed
on the first --loop texts and scaled to all of them; both give the same scores, which is checked.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from typing import Any

import numpy as np

from jobs import results
from raylm.softlabels.keywords import K1, K2, B, KeywordTable
from raylm.softlabels.words import Vocabulary


def main(options: argparse.Namespace) -> None:
    """Measure, and write bench/results/softlabels.json."""
    rows = measure(options.texts, options.labels, options.words, asked=options.loop, repeats=options.repeats)
    ratios = {
        "keyword_vs_loop": [row["loop"] / row["score"] for row in rows],
        "seconds": [row["count"] + row["leave_one_out"] for row in rows],
        "leave_one_out_vs_published": [row["leave_one_out"] / row["score"] for row in rows],
    }
    figures, intervals = results.geometric_means(ratios)
    sizes: dict[str, Any] = {"texts": options.texts, "labels": options.labels, "words": options.words}
    print(results.write("bench/results/softlabels", figures | sizes, rows, intervals=intervals, seeds=[0]))


def measure(count: int, labels: int, words: int, *, asked: int, repeats: int) -> list[dict[str, float]]:
    """Seconds of counting, scoring, scoring leave-one-out and of the loop, scaled to all texts; a row a repeat."""
    texts, gold = _drawn(count, labels, words)
    rows = []
    for repeat in range(repeats):
        start = time.monotonic()
        table = KeywordTable.of(texts, gold, labels, Vocabulary.of(texts, str.split))
        counted = time.monotonic()
        scores = table.scores(leave_one_out=False)
        published = time.monotonic()
        table.scores()
        ended = time.monotonic()
        plain, seconds = by_loop(texts, gold, labels, asked)
        np.testing.assert_allclose(scores[:asked], plain, rtol=1e-9)
        row = {"count": counted - start, "score": published - counted, "leave_one_out": ended - published}
        rows.append({"repeat": repeat, **row, "loop": seconds * count / asked})
    return rows


def by_loop(texts: list[str], gold: list[int], labels: int, asked: int) -> tuple[np.ndarray, float]:
    """Published scores of the first texts by the formulae, one text and one label at a time, and their seconds."""
    split = [text.split() for text in texts]
    own = [Counter[str]() for _ in range(labels)]
    frequency = Counter(word for words in split for word in set(words))
    for words, label in zip(split, gold, strict=True):
        own[label].update(words)
    lengths = [sum(counts.values()) for counts in own]
    average, holders = sum(lengths) / labels, Counter(word for counts in own for word in counts)
    found = np.zeros((asked, labels))
    start = time.monotonic()
    for row, words in enumerate(split[:asked]):
        counts = Counter(words)
        for label in range(labels):
            norm, total = K1 * (1 - B + B * lengths[label] / average), 0.0
            for word, count in counts.items():
                tf = own[label][word]
                relevance = tf * K1 / (tf + norm) * (math.log(labels / holders[word]) + 1)
                total += relevance * (math.log(len(texts) / frequency[word]) + 1) * count * K2 / (count + K2)
            found[row, label] = total
    return found, time.monotonic() - start


def _drawn(count: int, labels: int, words: int) -> tuple[list[str], list[int]]:
    draws = np.random.default_rng(0)
    gold = draws.integers(0, labels, count)
    common = np.minimum(draws.zipf(1.3, (count, 12)) - 1, words - 1)
    special = (gold[:, None] * 100 + draws.integers(0, 100, (count, 6))) % words
    return [" ".join(f"w{word}" for word in row) for row in np.hstack([common, special])], [
        int(label) for label in gold
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--words", type=int, default=50_000)
    parser.add_argument("--loop", type=int, default=300, help="texts that the loop is timed on")
    parser.add_argument("--repeats", type=int, default=3)
    main(parser.parse_args())
