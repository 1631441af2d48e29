"""Figures of rankings: those of their definitions, and a query without a ranking counts 0."""

import math

import pytest

from raylm.retrieval.measures import means, measure

JUDGED = {"q1": {"a": 2, "b": 1, "c": 0}, "q2": {"d": 2}, "q3": {"b": 1}}


def test_figures_are_those_of_the_definitions():
    found = measure({"q1": ["b", "x", "a"]}, JUDGED, relevant_from=2)
    assert list(found) == ["q1", "q2"]
    assert found["q1"] == {
        "nDCG@10": pytest.approx(1 / math.log2(4)),
        "RR@10": pytest.approx(1 / 3),
        "R@10": 1.0,
        "R@100": 1.0,
    }
    assert set(found["q2"].values()) == {0.0}
    graded = measure({"q1": ["b", "x", "a"]}, JUDGED)["q1"]["nDCG@10"]
    assert graded == pytest.approx((1 + 2 / math.log2(4)) / (2 + 1 / math.log2(3)))
    assert means(found)["RR@10"] == pytest.approx(1 / 6)


def test_depth_counts_and_nothing_found_is_nothing():
    far = measure({"q1": [f"x{n}" for n in range(10)] + ["a"]}, JUDGED, relevant_from=2)["q1"]
    assert (far["nDCG@10"], far["RR@10"], far["R@10"], far["R@100"]) == (0, 0, 0, 1)
    assert means(measure({}, JUDGED))["nDCG@10"] == 0
    assert means({}) == {}
