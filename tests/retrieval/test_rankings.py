"""Measures of rankings: equal scores, missing queries, run files."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.errors import UserError
from raylm.retrieval.fusion import Hit
from raylm.retrieval.rankings import check_names, per_query, read_run, write_run

NAMES = ("nDCG@10", "RR@10", "R@100", "AP")


def test_equal_scores_are_ordered_by_document_id_and_by_nothing_else():
    """Twelve tied documents with the relevant one first or last: libraries say 1.0 or 0.0 by accident."""
    names = [f"d{n:02d}" for n in range(12)]
    for relevant, expected in (("d00", 1.0), ("d11", 0.0), ("d01", 1 / math.log2(3))):
        for order in (names, names[::-1], sorted(names, key=hash)):
            found = per_query({"q": {relevant: 1}}, {"q": [Hit(name, 0.5) for name in order]}, ("nDCG@10",))
            assert found["nDCG@10"]["q"] == pytest.approx(expected)


def test_a_query_without_a_ranking_counts_as_zero():
    judged = {"a": {"x": 1}, "b": {"y": 1}, "c": {"z": 1}}
    found = per_query(judged, {"a": [Hit("x", 1.0)], "b": [], "unjudged": [Hit("x", 1.0)]}, NAMES)
    for name in NAMES:
        assert found[name] == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert per_query(judged, {}, NAMES)["AP"] == {"a": 0.0, "b": 0.0, "c": 0.0}


graded = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 2)).filter(lambda grades: any(grades.values()))
scored = st.dictionaries(st.sampled_from("abcdefghij"), st.sampled_from([0.1, 0.2, 0.3]))


@given(graded, scored)
def test_measures_are_their_formulae(grades, scores):
    ranking = sorted(scores, key=lambda name: (-scores[name], name))
    found = per_query({"q": grades}, {"q": [Hit(*pair) for pair in scores.items()]}, NAMES)
    relevant = [name for name, grade in grades.items() if grade > 0]
    gains = [grades.get(name, 0) / math.log2(rank + 1) for rank, name in enumerate(ranking[:10], start=1)]
    ideal = sum(g / math.log2(rank + 1) for rank, g in enumerate(sorted(grades.values(), reverse=True)[:10], start=1))
    places = [rank for rank, name in enumerate(ranking, start=1) if name in relevant]
    assert found["nDCG@10"]["q"] == pytest.approx(sum(gains) / ideal)
    assert found["RR@10"]["q"] == pytest.approx(1 / places[0] if places and places[0] <= 10 else 0.0)
    assert found["R@100"]["q"] == pytest.approx(len(places) / len(relevant))
    precisions = sum(count / rank for count, rank in enumerate(places, start=1))
    assert found["AP"]["q"] == pytest.approx(precisions / len(relevant))


def test_the_lowest_relevant_grade_is_chosen():
    hits = [Hit("a", 2.0), Hit("b", 1.0)]
    judged = {"q": {"a": 1, "b": 2}}
    assert per_query(judged, {"q": hits}, ("RR@10",))["RR@10"]["q"] == 1.0
    assert per_query(judged, {"q": hits}, ("RR@10",), relevant=2)["RR@10"]["q"] == 0.5
    with pytest.raises(UserError, match="does not know nonsense@3"):
        check_names(("nonsense@3",))


@given(st.dictionaries(st.sampled_from("pqr"), scored.filter(bool), min_size=1))
def test_a_run_file_gives_the_rankings_again(scores):
    rankings = {
        query: sorted((Hit(*pair) for pair in each.items()), key=lambda hit: (-hit.score, hit.id))
        for query, each in scores.items()
    }
    assert read_run(write_run(rankings, "tag"), "run") == rankings


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("q Q0 d 1 0.5", "line 1: 5 columns"),
        ("q Q0 d 1 0.5 t\nq Q0 e 2 high t", "line 2: score 'high' is not a finite number"),
        ("q Q0 d 1 nan t", "score 'nan'"),
        ("q Q0 d 1 0.5 t\nq Q0 d 2 0.4 t", "line 2: document d is there twice for query q"),
        ("\n", "holds no lines"),
    ],
)
def test_malformed_runs_are_refused_by_line(text, says):
    with pytest.raises(UserError, match=says):
        read_run(text, "run.trec")


def test_values_are_those_of_pytrec_eval_where_nothing_is_tied():
    import pytrec_eval

    draws = np.random.default_rng(0)
    judged = {f"q{n}": {f"d{m}": int(draws.integers(0, 3)) for m in draws.integers(0, 50, 8)} for n in range(20)}
    rankings = {q: [Hit(f"d{m}", float(draws.random())) for m in draws.permutation(50)[:30]] for q in judged}
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "map", "recall.100"})
    theirs = evaluator.evaluate({query: dict(hits) for query, hits in rankings.items()})
    ours = per_query(judged, rankings, ("nDCG@10", "AP", "R@100"))
    for name, key in (("nDCG@10", "ndcg_cut_10"), ("AP", "map"), ("R@100", "recall_100")):
        assert [ours[name][query] for query in judged] == pytest.approx([theirs[query][key] for query in judged])
