"""Pairs: the anchor, hard and soft negatives, true pivots, and what is never contrasted."""

import collections
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.crps import pairs
from raylm.crps.config import PairConfig

SHORT, LONG = "5 + 7 = 12\nAnswer: 12", "5 + 5 = 10\n10 + 2 = 12\nAnswer: 12"
TERMS = st.lists(st.integers(1, 60), min_size=3, max_size=5)
SLIPS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=12)


def test_the_anchor_is_the_correct_path_with_the_fewest_steps(tree):
    found = pairs.correct_paths(tree("5 + 7?", [(LONG, "correct"), (SHORT, "correct")]))
    assert [path.text for path in found] == [SHORT, LONG]


def test_ties_go_to_the_highest_value_on_the_path_and_then_to_the_node_ids(tree):
    low, high = "5 + 7 = 12\nAnswer: 12", "7 + 5 = 12\nAnswer: 12"
    responses = [(low, "correct"), (low.replace("Answer: 12", "Answer: 13"), "wrong"), (high, "correct")]
    grown = tree("5 + 7?", responses)
    values = {path.text: max(path.values[1:]) for path in pairs.paths(grown, "correct")}
    assert values[low] == values[high] == 1.0  # the leaves; node ids decide
    assert pairs.correct_paths(grown)[0].text == low
    doubted = grown.trajectories[0].node_ids[-1]
    nodes = [replace(node, value_sum=node.visits * 0.4) if node.id == doubted else node for node in grown.nodes]
    assert pairs.correct_paths(replace(grown, nodes=nodes))[0].text == high


def test_what_is_unfit_for_training_is_an_anchor_only_when_nothing_else_is(tree):
    lucky = "5 + 7 = 14\nAnswer: 12"
    grown = tree("5 + 7?", [(lucky, "correct"), (LONG, "correct"), ("5 + 7 = 13\nAnswer: 13", "wrong")])

    def unfit(path):
        return path.text == lucky

    assert [path.text for path in pairs.correct_paths(grown, unfit)] == [LONG]
    assert {pair.anchor.text for pair in pairs.select(grown, PairConfig(), 0, unfit)} == {LONG}
    alone = tree("5 + 7?", [(lucky, "correct")])
    assert [path.text for path in pairs.correct_paths(alone, unfit)] == [lucky]


def test_the_best_value_is_a_mean_over_the_steps(tree):
    # The guess is right once of three times, the way over 10 always.
    grown = tree("5 + 7?", [("Answer: 12", "correct"), (LONG, "correct"), ("Answer: 13", "wrong")])
    short = next(path for path in pairs.paths(grown, "correct") if path.length == 1)
    doubted = [replace(node, value_sum=node.visits / 3) if node.id == short.nodes[-1] else node for node in grown.nodes]
    grown = replace(grown, nodes=doubted)
    assert [path.length for path in pairs.correct_paths(grown, rank=pairs.best_value)] == [3, 1]


def test_where_forms_decide_the_best_form_is_the_only_anchor(tree):
    grown = tree("5 + 7?", [(SHORT, "correct"), (LONG, "correct"), ("5 + 7 = 13\nAnswer: 13", "wrong")])

    def longest(path):
        return -path.length

    found = pairs.select(grown, PairConfig(anchor="best_form"), 0, rank=longest)
    assert {pair.anchor.text for pair in found} == {LONG}
    with pytest.raises(ValueError, match=r"keep 0\.5 ranks anchors by their form; set anchor: best_form"):
        PairConfig(keep=0.5)


def test_an_empty_last_step_does_not_count_as_a_step():
    one = pairs.Path((1, 2), ("5 + 7 = 12\nAnswer: 12", ""), (0.0, 0.0, 0.0), 1)
    assert one.length == 1


def test_what_was_cut_off_or_not_verified_is_never_contrasted(tree):
    grown = tree("5 + 7?", [(SHORT, "correct"), ("5 + 7 = 1", "wrong", "length"), ("Answer: ?", "unverifiable")])
    assert pairs.select(grown, PairConfig(), 0) == []


@pytest.mark.parametrize("responses", [[("Answer: 1", "wrong")], [(SHORT, "correct")], []])
def test_without_a_correct_path_or_a_contrast_there_is_no_pair(tree, responses):
    assert pairs.select(tree("5 + 7?", responses), PairConfig(), 0) == []


def test_a_soft_negative_is_correct_and_longer(tree):
    (pair,) = pairs.select(tree("5 + 7?", [(LONG, "correct"), (SHORT, "correct")]), PairConfig(), 0)
    assert (pair.contrast, pair.anchor.text, pair.negative.text) == ("soft", SHORT, LONG)
    assert pair.rescue is None


@settings(deadline=None)
@given(terms=TERMS, slips=SLIPS, seed=st.integers(0, 9), how=st.sampled_from(["visits", "longest_prefix", "random"]))
def test_every_pair_shares_exactly_the_path_to_its_pivot(grown_sum, terms, slips, seed, how):
    grown = grown_sum(terms, [(at % (len(terms) - 1), slip) for at, slip in slips])
    chosen = pairs.select(grown, PairConfig(choose=how), seed)
    assert chosen == pairs.select(grown, PairConfig(choose=how), seed)
    verdicts = {tuple(path.node_ids): path.verdict for path in grown.trajectories}
    assert bool(chosen) == (len(grown.trajectories) > 1)
    assert len({(pair.anchor.nodes, pair.negative.nodes) for pair in chosen}) == len(chosen)
    for pair in chosen:
        assert (verdicts[pair.anchor.nodes], verdicts[pair.negative.nodes]) == ("correct", "wrong")
        assert pair.anchor.nodes[: pair.shared] == pair.negative.nodes[: pair.shared]
        assert pair.anchor.nodes[pair.shared] != pair.negative.nodes[pair.shared]
        node = pair.pivot_node
        assert node == (pair.anchor.nodes[pair.shared - 1] if pair.shared else 0)
        assert grown.nodes[pair.anchor.nodes[pair.shared]].parent == node
        assert grown.nodes[pair.negative.nodes[pair.shared]].parent == node


@settings(deadline=None)
@given(st.integers(1, 12), st.floats(0, 1), st.integers(0, 8), st.integers(0, 8))
def test_the_shares_of_hard_and_soft_pairs_are_limits(tree, most, ratio, bad, long):
    responses = [(SHORT, "correct")]
    responses += [(f"5 + 7 = {number}\nAnswer: {number}", "wrong") for number in range(20, 20 + bad)]
    responses += [(f"First {number}.\n{SHORT}", "correct") for number in range(long)]
    chosen = pairs.select(tree("5 + 7?", responses), PairConfig(max_pairs=most, hard_ratio=ratio), 0)
    kinds = collections.Counter(pair.contrast for pair in chosen)
    assert kinds["hard"] == min(bad, round(most * ratio))
    assert kinds["soft"] == min(long, most - round(most * ratio))


def test_one_kind_can_be_left_alone(tree):
    grown = tree("5 + 7?", [(SHORT, "correct"), (LONG, "correct"), ("Answer: 3", "wrong")])
    for ratio, kind in ((1.0, "hard"), (0.0, "soft")):
        assert {pair.contrast for pair in pairs.select(grown, PairConfig(hard_ratio=ratio), 0)} == {kind}


def test_longest_prefix_sets_a_wrong_path_beside_the_right_one_that_it_follows(tree):
    other = "5 + 5 = 10\n10 + 2 = 13\nAnswer: 13"
    grown = tree("5 + 7?", [(SHORT, "correct"), (LONG, "correct"), (other, "wrong")])
    hard = pairs.select(grown, PairConfig(hard_ratio=1), 0)
    assert [(pair.anchor.text, pair.shared) for pair in hard] == [(LONG, 1)]
    drawn = pairs.select(grown, PairConfig(hard_ratio=1, choose="visits"), 0)
    assert [(pair.anchor.text, pair.shared) for pair in drawn] == [(SHORT, 0)]
    assert drawn[0].rescue == pairs.Rescue(1, hard[0].anchor.nodes[1], "10 + 2 = 12\n")


def test_longest_prefix_takes_one_of_every_pivot_first(grown_sum):
    grown = grown_sum([1, 2, 3, 4], [(2, 1), (2, 2), (2, 3), (1, 1), (1, 2), (0, 1), (0, 2)])
    chosen = pairs.select(grown, PairConfig(max_pairs=3, hard_ratio=1), 0)
    assert [pair.shared for pair in chosen] == [2, 1, 0]
    more = pairs.select(grown, PairConfig(max_pairs=7, hard_ratio=1), 0)
    assert [pair.shared for pair in more] == [2, 1, 0, 2, 1, 0, 2]


def test_visits_draws_without_replacement_in_proportion(tree):
    often, seldom = "5 + 7 = 13\nAnswer: 13", "5 + 7 = 14\nAnswer: 14"
    first = collections.Counter()
    for number in range(400):
        responses = [(SHORT, "correct"), (seldom, "wrong"), (often, "wrong")]
        grown = tree("5 + 7?", responses, visits=[1, 1, 9], problem_id=f"p{number}")
        drawn = [pair.negative.text for pair in pairs.select(grown, PairConfig(choose="visits"), 0)]
        assert sorted(drawn) == [often, seldom]
        first[drawn[0]] += 1
    assert 0.85 < first[often] / 400 < 0.95


def test_another_seed_draws_other_pairs(tree):
    responses = [(SHORT, "correct"), *((f"5 + 7 = {n}\nAnswer: {n}", "wrong") for n in range(20, 40))]
    grown = tree("5 + 7?", responses)
    config = PairConfig(choose="visits")
    assert len({tuple(pairs.select(grown, config, seed)) for seed in range(5)}) == 5
