"""Figures of rankings, by ir-measures, with what libraries differ on decided here.

A ranking is a list of document ids: ties are broken before it comes here. A query without a ranking counts 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raylm.retrieval.data import Judgments

NAMES = ("nDCG@10", "RR@10", "R@10", "R@100")
"""nDCG by the grades of what is relevant; reciprocal rank and recall by relevance."""


def measure(
    rankings: Mapping[str, Sequence[str]], judged: Judgments, relevant_from: int = 1, names: Sequence[str] = NAMES
) -> dict[str, dict[str, float]]:
    """Figures of every judged query that has a relevant document: query to measure to value.

    Args:
        rankings: query to the documents found, best first.
        judged: query to document to grade.
        relevant_from: the grade from which a document is relevant; one with a lower grade gains nothing.
        names: measures, as ir-measures writes them without a relevance level.
    """
    import ir_measures

    asked = {query for query, grades in judged.items() if any(grade >= relevant_from for grade in grades.values())}
    parsed = {}
    for name in names:
        base, _, depth = name.partition("@")
        measure = ir_measures.parse_measure(base)
        measure = measure @ int(depth) if depth else measure
        parsed[measure if base == "nDCG" else measure(rel=relevant_from)] = name
    qrels = [
        ir_measures.Qrel(query, document, grade if grade >= relevant_from else 0)
        for query in sorted(asked)
        for document, grade in judged[query].items()
    ]
    run = [
        ir_measures.ScoredDoc(query, document, float(-rank))
        for query in sorted(asked & rankings.keys())
        for rank, document in enumerate(rankings[query])
    ]
    found = {query: dict.fromkeys(names, 0.0) for query in sorted(asked)}
    if run:
        for value in ir_measures.iter_calc(list(parsed), qrels, run):
            found[value.query_id][parsed[value.measure]] = float(value.value)
    return found


def means(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean of every measure over the queries; empty without queries."""
    rows = list(found.values())
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}
