from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.records import Node, Trajectory, Tree
from raylm.report.trees import Showcase, counts, drawing, outcome, pivots


def tree_from(paths):
    """A tree from (verdict, sequence of branch numbers); equal prefixes share nodes."""
    nodes = [Node(0, -1, "", [], 0.0, 1, 0.0, False, -1)]
    ids, trajectories = {(): 0}, []
    for verdict, branches in paths:
        for depth in range(1, len(branches) + 1):
            prefix = tuple(branches[:depth])
            if prefix not in ids:
                ids[prefix] = len(nodes)
                nodes.append(
                    Node(len(nodes), ids[prefix[:-1]], str(prefix), [1], -1.0, 1, 0.0, depth == len(branches), 0)
                )
        node_ids = [ids[tuple(branches[:depth])] for depth in range(1, len(branches) + 1)]
        trajectories.append(Trajectory(node_ids, "", "", verdict, 0.0, 1, -1.0, "stop"))
    return Tree("t", "p", "task", "q", "a", "c", "m", "r", 0, "h", 1, nodes, trajectories, 1, 1)


def last_common(first, second):
    shared = 0
    for a, b in zip([0, *first.node_ids], [0, *second.node_ids], strict=False):
        if a != b:
            break
        shared = a
    return shared


verdict = st.sampled_from(["correct", "wrong", "unverifiable"])
random_paths = st.lists(st.tuples(verdict, st.lists(st.integers(0, 2), min_size=1, max_size=5)), max_size=10)


@given(random_paths)
def test_pivots_are_the_last_common_nodes_of_all_right_and_wrong_pairs(paths):
    tree = tree_from(paths)
    right = [path for path in tree.trajectories if path.verdict == "correct"]
    wrong = [path for path in tree.trajectories if path.verdict == "wrong"]
    assert pivots(tree) == {last_common(a, b) for a, b in product(right, wrong)}


@given(random_paths)
def test_drawing_keeps_every_node_once_under_its_parent(paths):
    tree = tree_from(paths)
    drawn = drawing(tree)["nodes"]
    assert len(drawn) == len(tree.nodes)
    assert sorted(child for node in drawn for child in node["children"]) == list(range(1, len(tree.nodes)))
    assert sum(len(node["ends"]) for node in drawn) == len(tree.trajectories)
    for index, node in enumerate(drawn):
        below = {end["verdict"] for end in node["ends"]} | {
            path.verdict for path in tree.trajectories if index in [0, *path.node_ids]
        }
        assert node["outcome"] == (outcome(below) if outcome(below) != "none" or not below else "unverifiable")


def test_nodes_above_a_pivot_are_opened():
    drawn = drawing(tree_from([("correct", [0, 1, 0]), ("wrong", [0, 1, 1]), ("wrong", [0, 2])]))["nodes"]
    assert [index for index, node in enumerate(drawn) if node["pivot"]] == [1, 2]
    assert [index for index, node in enumerate(drawn) if node["abovePivot"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["correct", "wrong"], "mixed"),
        (["correct", "unverifiable"], "correct"),
        (["wrong"], "wrong"),
        (["unverifiable"], "none"),
        ([], "none"),
    ],
)
def test_outcome(verdicts, expected):
    assert outcome(verdicts) == expected


def test_showcase_prefers_mixed_trees_and_says_what_it_leaves_out(tree_of):
    showcase = Showcase(trees=3)
    kinds = [("wrong",), ("correct",), (), ("correct", "wrong")]
    trees = [tree_of(number, kinds[number % 4]) for number in range(12)]
    for tree in trees:
        showcase.offer(tree)
    assert [tree.id for tree in showcase.chosen()] == ["tree3", "tree7", "tree11"]
    assert showcase.caption().startswith("3 of 12 trees")
    assert counts(trees[3]) == {"correct": 1, "wrong": 1, "unverifiable": 0}


def test_showcase_limits_nodes_but_always_shows_one(tree_of):
    showcase = Showcase(nodes=5)
    for number in range(3):
        showcase.offer(tree_of(number, branch=20))
    assert len(showcase.chosen()) == 1


def test_showcase_with_everything_says_nothing_of_parts(tree_of):
    showcase = Showcase()
    showcase.offer(tree_of(1))
    assert "of 1 trees" not in showcase.caption()
