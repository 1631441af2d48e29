"""Rankings of scored documents: put in order, measured query by query, and kept as TREC run files.

Libraries differ where scores are equal and where a ranking lacks a query. Here equal scores are ordered by document id
before anything is measured, and a judged query without a ranking counts as 0 in every measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from raylm.errors import UserError
from raylm.retrieval.data import Judgments
from raylm.retrieval.fusion import Hit
from raylm.retrieval.measures import measure

Rankings = Mapping[str, Sequence[Hit]]
"""Query id to documents, best first."""


def check_names(names: Sequence[str]) -> None:
    """Refuse measures that ir-measures does not know.

    Raises:
        UserError: names the first.
    """
    import ir_measures

    for name in names:
        try:
            ir_measures.parse_measure(name)
        except (NameError, ValueError, SyntaxError, KeyError) as error:
            raise UserError(f"metrics: ir-measures does not know {name} ({error}); nDCG@10, RR@10, R@100, AP") from None


def per_query(
    judgments: Judgments, rankings: Rankings, names: Sequence[str], relevant: int = 1
) -> dict[str, dict[str, float]]:
    """Measure to query to its value, for every judged query with a document of at least the grade `relevant`.

    Args:
        judgments: query to document to grade.
        rankings: they are put in order of score and id first; other queries than the judged ones do not count.
        names: of measures.
        relevant: lowest relevant grade of measures with two grades.
    """
    lists = {query: [hit.id for hit in ordered(rankings[query])] for query in judgments if query in rankings}
    found = measure(lists, judgments, relevant, names)
    return {name: {query: values[name] for query, values in found.items()} for name in names}


def ordered(hits: Iterable[Hit]) -> list[Hit]:
    """Best first, equal scores by document id."""
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))


def write_run(rankings: Rankings, tag: str) -> str:
    """A TREC run: query, Q0, document, rank from 1, score, tag; a line a document."""
    lines = [
        f"{query} Q0 {hit.id} {rank} {hit.score:.6f} {tag}\n"
        for query, hits in rankings.items()
        for rank, hit in enumerate(hits, start=1)
    ]
    return "".join(lines)


def read_run(text: str, where: str) -> dict[str, list[Hit]]:
    """Rankings of a TREC run, by score and document id; its ranks are not looked at.

    Raises:
        UserError: a malformed line, a score that is not finite, or a document that is there twice for a query.
    """
    found: dict[str, dict[str, float]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        columns = line.split()
        if not columns:
            continue
        if len(columns) != 6:
            raise UserError(
                f"{where}: line {number}: {len(columns)} columns; a TREC run has query Q0 document rank score tag"
            )
        query, name = columns[0], columns[2]
        try:
            score = float(columns[4])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise UserError(f"{where}: line {number}: score {columns[4]!r} is not a finite number")
        if name in found.setdefault(query, {}):
            raise UserError(f"{where}: line {number}: document {name} is there twice for query {query}")
        found[query][name] = score
    if not found:
        raise UserError(f"{where}: holds no lines")
    return {query: ordered(Hit(*pair) for pair in scores.items()) for query, scores in found.items()}
