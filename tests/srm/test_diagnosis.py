"""Diagnosis on pairs that can be worked out by hand."""

import numpy as np
import pytest

from raylm.srm import diagnosis
from raylm.srm.diagnosis import Scored

NAMES = ("facts", "style")


def scored(attributions, lengths=None):
    shares = np.array(attributions, dtype=float)
    texts = [("p", " ".join(["w"] * (lengths[n] if lengths else 3))) for n in range(len(shares))]
    return Scored(NAMES, texts, shares.sum(1), shares, shares)


PAIRS = np.array([[0, 1], [2, 3], [4, 5]])
WORLD = scored([[1, 0], [0, 0], [-2, 1], [0, 0], [0, -3], [1, 0]], [3, 3, 9, 3, 10, 11])


def test_bad_cases_are_grouped_by_the_branch_at_fault_worst_first():
    groups = diagnosis.bad_cases(WORLD, PAIRS)
    assert [(group["dimension"], group["pairs"], group["share"]) for group in groups] == [
        ("facts", 1, 0.5),
        ("style", 1, 0.5),
    ]
    assert groups[1]["examples"][0]["difference"] == -4.0
    assert groups[1]["examples"][0]["shares"] == {"facts": -1.0, "style": -3.0}
    assert diagnosis.bad_cases(WORLD, PAIRS[:1]) == []


def test_figures():
    found = diagnosis.measure(WORLD, PAIRS)
    assert found["pair_accuracy"] == pytest.approx(1 / 3)
    assert found["length_matched_pairs"] == 2
    assert found["length_matched_accuracy"] == 0.5
    assert found["longer_wins"] == pytest.approx(0.5)  # of the two pairs of different length
    assert found["branch_alone"] == {"facts": pytest.approx(1 / 3), "style": pytest.approx((0.5 + 1 + 0) / 3)}
    assert found["pair_nll"] == pytest.approx(np.mean([np.log1p(np.exp(-d)) for d in (1, -1, -4)]))
    assert diagnosis.measure(WORLD, PAIRS[:0]) == {"pairs": 0}


def test_agreement_is_that_of_ranks_and_skips_what_is_missing():
    values = np.array([1.0, 2.0, 3.0, 10.0, np.nan])
    ratings = np.array([1.0, 2.0, 2.0, 9.0, 0.0])
    found = diagnosis.agreement(values, ratings)
    assert found["texts"] == 4
    assert found["spearman"] == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 2.5, 2.5, 4])[0, 1])
    assert found["kendall"] == pytest.approx(5 / np.sqrt(6 * 5))  # five concordant pairs, one tie
    assert np.isnan(diagnosis.agreement(values, np.ones(5))["spearman"])
    assert np.isnan(diagnosis.agreement(values[:2], ratings[:2])["kendall"])


def test_what_is_no_number_is_none_in_an_artefact():
    assert diagnosis.known({"a": {"b": float("nan")}, "c": 1.5, "d": "x"}) == {"a": {"b": None}, "c": 1.5, "d": "x"}


def test_every_pair_is_written_with_its_shares():
    rows = diagnosis.rows(WORLD, PAIRS)
    assert [row["share_facts"] for row in rows] == [1.0, -2.0, -1.0]
    assert rows[0]["chosen_score"] == 1.0
