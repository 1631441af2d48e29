"""Which paths are contrasted."""

from dataclasses import replace

import pytest

from raylm.crps import pairs
from raylm.crps.config import PairConfig


def test_the_anchor_is_the_shortest_correct_path(tree):
    assert pairs.rank(tree, pairs.correct(tree))[0].text.startswith("13 - 4 = 9\n9 + 2 = 11")


def test_longest_prefix_pairs_part_at_the_true_pivot(tree):
    chosen = pairs.select(tree, PairConfig(max_pairs=10, hard_ratio=0.7), seed=0)
    by_start = {(pair.negative.text.splitlines()[0], pair.negative.answer): pair for pair in chosen}
    slip = by_start["13 - 4 = 9", "12"]
    assert slip.shared == 1
    assert tree.nodes[slip.pivot_node].text == "13 - 4 = 9\n"
    assert by_start["13 - 2 = 11", "15"].pivot_node == 0
    assert [pair.shared for pair in chosen if pair.contrast == "hard"] == [1, 1, 0]
    assert [pair.contrast for pair in chosen].count("soft") == 1


def test_limits_and_ratio_hold(tree):
    chosen = pairs.select(tree, PairConfig(max_pairs=2, hard_ratio=0.5), seed=0)
    assert [pair.contrast for pair in chosen] == ["hard", "soft"]


def test_visit_weighted_choice_repeats_with_its_seed_and_never_twice(tree):
    config = PairConfig(choose="visits")
    chosen = pairs.select(tree, config, seed=3)
    assert chosen == pairs.select(tree, config, seed=3)
    hard = [pair.negative.text for pair in chosen if pair.contrast == "hard"]
    assert len(hard) == len(set(hard)) == 3


def test_no_pair_without_both_kinds(grow):
    assert pairs.select(grow("q", "2", ["1 + 1 = 2\nAnswer: 2"]), PairConfig(), 0) == []
    assert pairs.select(grow("q", "2", ["1 + 1 = 3\nAnswer: 3"]), PairConfig(), 0) == []


def test_a_path_that_ran_out_of_tokens_is_no_negative(tree):
    cut = [replace(item, finish_reason="length") if item.verdict == "wrong" else item for item in tree.trajectories]
    chosen = pairs.select(replace(tree, trajectories=cut), PairConfig(), 0)
    assert {pair.contrast for pair in chosen} == {"soft"}


@pytest.mark.parametrize("choose", ["visits", "longest_prefix"])
@pytest.mark.parametrize(("count", "ratio"), [(1, 0.0), (1, 1.0), (3, 0.5), (10, 0.7)])
def test_a_pair_is_a_correct_path_and_a_worse_one(tree, choose, count, ratio):
    chosen = pairs.select(tree, PairConfig(max_pairs=count, hard_ratio=ratio, choose=choose), seed=1)
    assert 1 <= len(chosen) <= count
    for pair in chosen:
        anchor, negative = pair.anchor.node_ids, pair.negative.node_ids
        assert pair.anchor.verdict == "correct"
        assert (pair.negative.verdict == "wrong") == (pair.contrast == "hard")
        assert anchor[: pair.shared] == negative[: pair.shared]
        assert anchor[pair.shared : pair.shared + 1] != negative[pair.shared : pair.shared + 1]
