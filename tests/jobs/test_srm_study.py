"""The study's planted set is what it says, and its analysis finds what was put in."""

import pytest

from jobs.studies.srm import planted
from jobs.studies.srm.analysis import diagonal, summarise
from jobs.studies.srm.sets import SETS
from raylm.config import build
from raylm.srm.config import RewardConfig
from raylm.srm.tools import TOOLS


def test_planted_responses_have_the_levels_that_they_were_made_of():
    pairs, ratings = planted.make(200, 3)
    by_text = {(row["prompt"], row["response"]): row["scores"] for row in ratings}
    for pair in pairs:
        scores = [by_text[pair["prompt"], pair[side]] for side in ("chosen", "rejected")]
        assert scores[0][pair["decides"]] > scores[1][pair["decides"]] - 2  # a point of noise each
        for tool, sign in (("coverage", 1), ("arithmetic", 1), ("repetition", -1)):
            values = [sign * TOOLS[tool](pair["prompt"], pair[side]) for side in ("chosen", "rejected")]
            if pair["decides"] == tool:
                assert values[0] > values[1]
    assert {pair["decides"] for pair in pairs} == set(planted.ASPECTS)
    assert planted.make(200, 3) == (pairs, ratings)


@pytest.mark.parametrize("name", SETS)
def test_branches_of_every_set_are_a_config(name):
    config = build(RewardConfig, {"branches": SETS[name].branches()})
    assert [branch.name for branch in config.branches][:2] == ["quality", "wide"]


def rows():
    dimensions = ("style", "arithmetic")
    base = {"set": "planted", "pair_nll": 0.1}
    for seed in (0, 1):
        whole = dict.fromkeys(dimensions, 0.9)
        found = {"pair_accuracy": 0.9, "by_dimension": whole, "attribution_top1": 0.8, "ece": 0.1}
        yield {**base, "seed": seed, "arm": "srm", **found}
        for arm in ("scalar", "scalar_wide", "shuffled", "filler", "logistic", "length"):
            yield {**base, "seed": seed, "arm": arm, "pair_accuracy": 0.7 + 0.02 * seed}
        for arm, own in (("without_style", "style"), ("without_tool_arithmetic", "arithmetic")):
            yield {**base, "seed": seed, "arm": arm, "pair_accuracy": 0.8, "by_dimension": {**whole, own: 0.6}}


def test_the_analysis_pairs_by_seed_and_finds_the_diagonal():
    figures, intervals = summarise(list(rows()))
    assert figures["srm_minus_scalar"] == pytest.approx(0.19)
    low, high = intervals["srm_minus_scalar"]
    assert low < 0.19 < high
    assert figures["attribution_top1"] == pytest.approx(0.8)
    assert (figures["diagonal_wins_planted"], figures["diagonal_of_planted"]) == (2, 2)
    assert figures["removal_losses_planted"]["style"]["style"] == pytest.approx(0.3)
    assert diagonal({}, []) == {}
