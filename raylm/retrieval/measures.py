"""How good rankings are, query by query, with ir-measures; and TREC run files.

Libraries differ where scores are equal and where a ranking lacks a query. Here equal scores are ordered by document id
before anything is measured, and a judged query without a ranking counts as 0 in every measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raylm.errors import UserError
from raylm.retrieval.fusion import Hit

Rankings = Mapping[str, Sequence[Hit]]
"""Query id to documents, best first."""


def parsed(names: Sequence[str], relevant: int = 1) -> dict[str, Any]:
    """ir-measures' measures by their names; those with two grades take `relevant` as the lowest relevant one.

    Raises:
        UserError: a name that ir-measures does not know.
    """
    import ir_measures

    found = {}
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
        except (NameError, ValueError, SyntaxError, KeyError) as error:
            raise UserError(f"metrics: ir-measures does not know {name} ({error}); nDCG@10, RR@10, R@100, AP") from None
        if "rel" in measure.SUPPORTED_PARAMS and "rel" not in measure.params:
            measure = measure(rel=relevant)
        found[name] = measure
    return found


def per_query(
    judgments: Mapping[str, Mapping[str, int]], rankings: Rankings, names: Sequence[str], relevant: int = 1
) -> dict[str, dict[str, float]]:
    """Measure to query to its value, for every judged query.

    Args:
        judgments: query to document to grade.
        rankings: they are put in order of score and id first; other queries than the judged ones do not count.
        names: of measures.
        relevant: lowest relevant grade of measures with two grades.
    """
    import ir_measures

    wanted = parsed(names, relevant)
    rows = [
        ir_measures.Qrel(query, name, grade) for query, grades in judgments.items() for name, grade in grades.items()
    ]
    run = [
        ir_measures.ScoredDoc(query, hit.id, float(-rank))  # ranks alone: no library can order equal scores otherwise
        for query in judgments
        for rank, hit in enumerate(ordered(rankings.get(query, ())))
    ]
    found = {name: dict.fromkeys(judgments, 0.0) for name in names}
    by_measure = {str(measure): name for name, measure in wanted.items()}
    for value in ir_measures.iter_calc(list(wanted.values()), rows, run) if run else ():
        found[by_measure[str(value.measure)]][value.query_id] = float(value.value)
    return found


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
    for number, line in enumerate(text.splitlines(), start=1):
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
