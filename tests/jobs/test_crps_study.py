"""The study of contrast: its multiplier is right on made-up runs, its world is sound, its subsets are nested."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.studies.crps import analysis
from jobs.studies.crps.arms import ARMS, subset, within_tokens
from jobs.studies.crps.base import World, problems, worked
from jobs.studies.crps.tiers import MICRO, TIERS
from raylm.config import build
from raylm.crps.config import SynthesizeConfig
from raylm.llm.config import EngineConfig
from raylm.records import Chain, Message, Tree
from raylm.tasks.answers import equalities, extract_answer
from raylm.train.config import FinetuneConfig

QUESTIONS = 2_000


def runs(curve, ours, seeds=3):
    """Runs of A0 with accuracy curve(n), and of another arm with accuracy ours at 100."""
    made = []
    for seed in range(seeds):
        draws = np.random.default_rng(seed)

        def answers(accuracy, draws=draws):
            return (draws.random(QUESTIONS) < accuracy).astype(int).tolist()

        for n in (50, 100, 200, 400, 800):
            made.append({"seed": seed, "arm": "A0_rejection", "n": n, "suite": answers(curve(n))})
        made.append({"seed": seed, "arm": "ours", "n": 100, "suite": answers(ours)})
    return made


def rising(n):
    return 0.1 + 0.1 * math.log2(n / 50)


def test_a_size_is_read_off_between_the_points_of_a_curve():
    assert analysis.needed([10, 100], [0.2, 0.4], 0.3) == pytest.approx(math.sqrt(1000))
    assert analysis.needed([10, 100], [0.2, 0.4], 0.1) == 10
    assert analysis.needed([10, 100], [0.2, 0.4], 0.5) == math.inf
    assert analysis.needed([10, 100, 1000], [0.3, 0.2, 0.4], 0.25) == 10  # a dip is averaged away


@pytest.mark.parametrize("times", [1, 2, 4])
def test_a_known_multiplier_is_found_within_its_interval(times):
    found = analysis.multiplier(runs(rising, rising(100 * times)), "ours", 100, "suite")
    low, high = found["interval"]
    assert low <= times <= high
    assert found["multiplier"] == pytest.approx(times, rel=0.25)
    assert high / low < 2.5


def test_what_the_reference_never_reaches_is_said_to_be_censored():
    found = analysis.multiplier(runs(rising, 0.9), "ours", 100, "suite")
    assert found["censored"]
    assert found["censored_share"] == 1.0
    assert found["multiplier"] == 8.0  # the largest size that was tried


@pytest.mark.parametrize("times", [1, 4, 20])
def test_a_line_goes_on_beyond_the_largest_size(times):
    found = analysis.extrapolated(runs(rising, rising(100 * times)), "ours", "suite", [100])
    low, high = found["interval"]
    assert low <= times <= high
    assert found["multiplier"] == pytest.approx(times, rel=0.3)
    assert found["slope"] == pytest.approx(0.1, abs=0.02)
    assert found["slope_interval"][0] < 0.1 < found["slope_interval"][1]


@pytest.mark.parametrize(("ours", "multiplier"), [(0.5, analysis.LARGEST), (0.1, 1 / analysis.LARGEST)])
def test_a_line_that_does_not_rise_reaches_nothing(ours, multiplier):
    found = analysis.extrapolated(runs(lambda n: 0.4 - 0.001 * n / 50, ours), "ours", "suite", [100])
    assert found["multiplier"] == multiplier


def test_a_difference_has_an_interval_that_holds_it():
    made = runs(lambda n: 0.3, 0.4)
    found = analysis.difference(made, "ours", "A0_rejection", "suite", [50, 100])
    assert found["difference"] == pytest.approx(0.1, abs=0.03)
    assert found["interval"][0] < 0.1 < found["interval"][1]
    assert found["seeds"] == 3
    same = analysis.difference(made, "ours", "ours", "suite", [100])
    assert (same["difference"], same["interval"]) == (0.0, [0.0, 0.0])


@given(st.integers(0, 1000), st.integers(2, 6))
def test_worked_sums_are_right_and_questions_never_meet(seed, terms):
    avoid = set()
    first = problems(World(), 20, seed, (terms, terms), avoid)
    second = problems(World(), 20, seed, (terms, terms), avoid)
    assert len({item.question for item in [*first, *second]}) == 40
    for item in first:
        text = worked(item)
        assert extract_answer(text) == item.answer
        assert len(equalities(text)) == terms - 1
        assert all(claim.holds for claim in equalities(text))


@given(st.integers(0, 1000), st.sampled_from(["guess", "leaps", "steps", "checks"]))
def test_every_way_of_writing_a_sum_is_right(seed, habit):
    for item in problems(World(), 10, seed, (2, 5), set()):
        text = worked(item, habit, random.Random(seed))
        assert extract_answer(text) == item.answer
        assert all(claim.holds for claim in equalities(text))


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_config_that_its_stage_takes(arm):
    assert ARMS[arm][0] in ("mcts", "flat")
    build(SynthesizeConfig, {"trees": "unused", **ARMS[arm][1]})


@pytest.mark.parametrize("tier", TIERS.values(), ids=TIERS)
def test_a_tier_names_arms_that_there_are_and_settings_that_hold(tier):
    assert set(tier.arms) <= set(ARMS)
    FinetuneConfig(**tier.tuning)
    EngineConfig(**tier.engine)
    for key in ("A0_rejection", "A4_crps"):
        assert tier.arms[key] == tuple(sorted(tier.arms[key]))


def test_search_and_test_questions_of_the_small_tier_never_meet():
    suites, pool = MICRO.material(3, 50)
    asked = [item.question for suite in (*suites.values(), pool) for item in suite]
    assert len(asked) == len(set(asked)) == 850


def chain(number):
    asked = [Message("user", "q")]
    names = (f"tree{number // 2}", "crps", "hard")
    return Chain(f"c{number}", asked, "p", "t", *names, [], [], 0, "{}", "", "correct", "m", "r", "a", "s", 0, 0)


def test_training_sets_are_nested_and_a_budget_takes_whole_trees():
    pool = [chain(number) for number in range(20)]
    small, large = subset(pool, 5, 3), subset(pool, 12, 3)
    assert large[:5] == small
    assert len({item.id for item in large}) == 12
    trees = [Tree(f"tree{n}", "p", "t", "q", "1", "exact", "m", "r", 0, "h", 1, [], [], 0, 100) for n in range(10)]
    kept = within_tokens(pool, trees, 350)
    assert {item.tree_id for item in kept} == {"tree0", "tree1", "tree2"}
    assert len(kept) == 6
