"""How long the filters of the synthesis take on many chains, and how much memory.

    python -m jobs.bench.filters [--chains N] [--evaluation N] [--per-question N]

Chains are word-problem solutions of some sixty words made from templates; a known share are exact copies, near copies,
or hold thirteen words of an evaluation question. One process does what an actor of the stage does.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from typing import Any

from jobs import results
from raylm.crps.config import FilterConfig
from raylm.crps.filters import Contamination, Copies, fault

COPY, NEAR, LEAK = 0.1, 0.1, 0.05
_NOUNS = ("pens", "eggs", "books", "apples", "coins", "cards", "shells", "cups", "seeds", "bricks", "stamps", "boxes")
_PLACES = ("market", "school", "garden", "library", "harbour", "station", "museum", "farm", "bakery", "office")
_NAMES = ("Tom", "Ann", "Raj", "Mia", "Leo", "Eva", "Sam", "Ida", "Max", "Zoe")


def main(chains: int, evaluation: int, per_question: int) -> None:
    """Measure, and write bench/results/filters.json."""
    draw = random.Random(0)
    questions = [("held_out", _question(draw)) for _ in range(evaluation)]
    batches = [_batch(draw, questions, per_question) for _ in range(chains // per_question)]
    config = FilterConfig(max_steps=64)
    before = _peak_mib()
    start = time.perf_counter()
    leaks = Contamination(questions, config.ngram)
    indexed = time.perf_counter() - start
    counts = {"faulty": 0, "copies": 0, "leaks": 0, "kept": 0}
    shown = start
    for number, batch in enumerate(batches):
        copies = Copies(config.dedup_jaccard)
        for text in batch:
            if fault(text, "", config):
                counts["faulty"] += 1
            elif copies.reason(text):
                counts["copies"] += 1
            else:
                counts["leaks" if leaks.found(text) else "kept"] += 1
        if time.perf_counter() - shown > 10:
            shown = time.perf_counter()
            rate = (number + 1) * per_question / (shown - start)
            left = (len(batches) - number - 1) * per_question / rate
            print(f"{(number + 1) * per_question:,} chains, {rate:,.0f} a second, {left:.0f} s left", file=sys.stderr)
    seconds = time.perf_counter() - start
    total = len(batches) * per_question
    figures: dict[str, Any] = {
        "chains": total,
        "evaluation_questions": evaluation,
        "seconds": seconds,
        "chains_per_second": total / seconds,
        "seconds_per_100k": 1e5 * seconds / total,
        "index_seconds": indexed,
        "added_memory_mib": _peak_mib() - before,
        **counts,
    }
    print(results.write("bench/results/filters", figures, [figures]))


def _batch(draw: random.Random, questions: list[tuple[str, str]], size: int) -> list[str]:
    """Chains of one question."""
    made = [_chain(draw)]
    while len(made) < size:
        lot = draw.random()
        if lot < COPY:
            made.append(draw.choice(made))
        elif lot < COPY + NEAR:
            made.append(draw.choice(made).replace("So the", "And so the"))
        elif lot < COPY + NEAR + LEAK:
            made.append(f"{draw.choice(questions)[1]}\n{_chain(draw)}")
        else:
            made.append(_chain(draw))
    return made


def _question(draw: random.Random) -> str:
    name, noun, place = draw.choice(_NAMES), draw.choice(_NOUNS), draw.choice(_PLACES)
    a, b, c = (draw.randrange(2, 10**6) for _ in range(3))
    return f"{name} has {a} {noun} and buys {b} more at the {place} before losing {c} of them; how many {noun} now?"


def _chain(draw: random.Random) -> str:
    total, lines = draw.randrange(2, 10**4), []
    for _ in range(draw.randrange(4, 8)):
        name, noun, place = draw.choice(_NAMES), draw.choice(_NOUNS), draw.choice(_PLACES)
        more = draw.randrange(2, 10**4)
        lines.append(f"{name} finds {more} {noun} at the {place}. So the count is {total} + {more} = {total + more}")
        total += more
    return "\n".join([*lines, f"Answer: {total}"])


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=100_000)
    parser.add_argument("--evaluation", type=int, default=20_000, help="evaluation questions")
    parser.add_argument("--per-question", type=int, default=10, help="chains of one question")
    options = parser.parse_args()
    main(options.chains, options.evaluation, options.per_question)
