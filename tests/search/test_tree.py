"""The search tree: selection, merging, backup, exhaustion, exact state."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.search.tree import LENGTH, NONE, OPEN, STOP, Limits, SearchTree, Step, puct, uct


def steps(*texts, ids=None):
    return [Step(tuple(map(ord, text)) if ids is None else ids[i], text, -1.0) for i, text in enumerate(texts)]


def grown(limits=None, *completions):
    tree = SearchTree(limits or Limits())
    for texts, reward in completions:
        end, _ = tree.insert(0, steps(*texts), STOP, 0)
        tree.backup(end, reward)
    return tree


def test_uct_is_the_formula():
    assert uct(0.5, 4, 16, 1.4) == 0.5 + 1.4 * math.sqrt(math.log(16) / 4)
    assert uct(0.25, 1, 1, 1.4) == 0.25


def test_a_completion_is_inserted_whole_and_backed_up_on_its_path():
    tree = grown(None, (["a\n", "b\n", "c"], 1.0), (["a\n", "x"], 0.0))
    assert len(tree) == 5
    assert tree.column("parent").tolist() == [-1, 0, 1, 2, 1]
    assert tree.column("depth").tolist() == [0, 1, 2, 3, 2]
    assert tree.column("visits").tolist() == [2, 2, 1, 1, 1]
    assert [tree.value(node) for node in range(5)] == [0.5, 0.5, 1.0, 1.0, 0.0]
    assert tree.text(3) == "a\nb\nc"
    assert tree.token_ids(4) == [ord("a"), ord("\n"), ord("x")]
    assert tree.column("end").tolist() == [OPEN, OPEN, OPEN, STOP, STOP]


def test_equal_steps_merge_by_tokens_or_by_text_up_to_white_space():
    tree = SearchTree(Limits())
    first, _ = tree.insert(0, steps("a b\n", "c", ids=[(1, 2), (3,)]), STOP, 0)
    same_tokens, new = tree.insert(0, steps("a b\n", "c", ids=[(1, 2), (3,)]), STOP, 0)
    assert (same_tokens, new) == (first, False)
    same_text, new = tree.insert(0, steps("a  b \n", "c ", ids=[(9,), (8, 7)]), STOP, 0)
    assert (same_text, new) == (first, False)
    other, new = tree.insert(0, steps("a b\n", "C", ids=[(1, 2), (4,)]), STOP, 0)
    assert new
    assert tree.column("parent")[other] == tree.column("parent")[first]


def test_an_end_and_a_step_that_goes_on_are_different_nodes():
    tree = grown(None, (["a\n"], 1.0), (["a\n", "b"], 0.0))
    assert tree.column("end").tolist() == [OPEN, STOP, OPEN, STOP]
    assert tree.insert(0, steps("a\n"), LENGTH, 0)[1]  # the same text, but the model had not finished


def test_a_response_that_ends_at_once_is_the_same_however_it_was_reached():
    tree = grown(None, (["a\n", "b"], 0.0))
    empty, new = tree.insert(1, [], STOP, 1)
    assert new
    assert tree.text(empty) == "a\n"
    assert tree.insert(0, steps("a\n"), STOP, 1) == (empty, False)
    other = grown(None, (["a\n", "b"], 0.0), (["a\n"], 1.0))
    assert other.insert(1, [], STOP, 1) == (3, False)


def test_an_unknown_reward_counts_as_a_visit_of_no_value():
    tree = grown(None, (["a"], 1.0), (["b"], None))
    assert tree.column("visits").tolist() == [1, 1, 0]
    assert tree.value(0) == 1.0
    assert tree.column("unscored").tolist() == [1, 0, 1]


def test_arms_never_tried_come_first_then_uct_and_ties_go_to_the_smaller_id():
    tree = SearchTree(Limits())
    assert tree.select() == 0
    tree.release(0)
    for text, reward in (("a\n", 0.0), ("b\n", 1.0)):
        tree.backup(tree.insert(0, steps(text, "z"), STOP, 0)[0], reward)
    # Root's own arm: Q 0.5 of 2 draws. Children 1 and 3 have one visit each; 3 has the higher Q.
    assert tree.select() == 3
    tree.release(3)
    tied = grown(None, (["a\n", "z"], 1.0), (["b\n", "z"], 1.0))
    assert tied.select() == 1


def test_virtual_loss_spreads_leaves_and_is_returned():
    tree = grown(None, *[([f"{letter}\n", "z"], 1.0) for letter in "abcd"])
    chosen = [tree.select(weight=4) for _ in range(4)]
    assert sorted(chosen) == [1, 3, 5, 7]
    assert SearchTree.from_state(tree.limits, tree.state()).select() == 1  # a state knows of no virtual visits
    for leaf in chosen:
        tree.release(leaf, weight=4)
    assert not tree.column("in_flight").any()
    assert not tree.column("drawing").any()


def test_widening_keeps_a_crowded_node_from_being_sampled_while_something_is_left_below():
    crowded = grown(Limits(widen=1.0, widen_power=0.0), (["a\n", "z"], 1.0), (["b\n", "z"], 0.0))
    assert all(crowded.select() != 0 for _ in range(12))
    terminal_only = grown(Limits(widen=1.0, widen_power=0.0), (["a"], 1.0), (["b"], 0.0))
    assert terminal_only.select() == 0


def test_a_node_that_only_repeats_known_paths_is_left_alone_until_nothing_is_left():
    tree = grown(Limits(patience=2), (["a"], 1.0))
    for expected in (False, False):
        assert not tree.exhausted()
        assert tree.insert(0, steps("a"), STOP, 0)[1] is expected
    assert tree.exhausted()
    with pytest.raises(ValueError, match="nothing is left"):
        tree.select()


def test_depth_and_length_bound_what_is_sampled_but_not_what_is_kept():
    deep = grown(Limits(max_depth=1), (["a\n", "b\n", "c"], 0.0))
    assert deep.select() == 0  # its child lies at the bound
    assert len(deep) == 4
    long = grown(Limits(max_tokens=2), (["ab", "c"], 0.0))
    assert [long.select() for _ in range(3)] == [0, 0, 0]


def test_puct_is_the_formula_and_its_priors_are_the_policys_own():
    assert puct(0.5, 0.25, 3, 16, 2.0) == 0.5 + 2.0 * 0.25 * 4.0 / 4
    tree = SearchTree(Limits(rule="puct", c=100.0, widen=0.1, widen_power=0.0))
    likely, rare = Step((1,), "likely\n", math.log(0.8)), Step((2,), "rare\n", math.log(0.1))
    for step in (rare, likely):
        tree.backup(tree.insert(0, [step, Step((9,), "z", -1.0)], STOP, 0)[0], 1.0)
    assert tree.select() == 3  # the likelier step, though it was found later
    arms = [(0, 2), (1, 1), (3, 1)]
    assert tree._priors(0, arms) == pytest.approx([0.1, 0.1, 0.8])


def test_backup_takes_the_mean_or_the_highest_reward():
    for backup, value in (("mean", 0.5), ("max", 1.0)):
        tree = grown(Limits(backup=backup), (["a\n", "b"], 1.0), (["a\n", "c"], 0.0))
        assert tree.value(0) == tree.value(1) == value


def test_an_end_must_be_an_end():
    with pytest.raises(ValueError, match="STOP or LENGTH"):
        SearchTree(Limits()).insert(0, steps("a"), OPEN, 0)


LIMITS = st.builds(
    Limits,
    c=st.sampled_from([0.0, 1.4]),
    max_depth=st.integers(1, 4),
    max_tokens=st.integers(1, 12),
    widen=st.sampled_from([0.5, 1.0, 2.0]),
    widen_power=st.sampled_from([0.0, 0.5, 1.0]),
    patience=st.integers(1, 3),
    rule=st.sampled_from(["uct", "puct"]),
    backup=st.sampled_from(["mean", "max"]),
)
COMPLETION = st.tuples(
    st.lists(st.sampled_from(["a\n", "b\n", "a \n", "cc\n"]), max_size=3),
    st.sampled_from([STOP, LENGTH]),
    st.sampled_from([0.0, 1.0, None]),
)
ROUNDS = st.lists(st.lists(st.lists(COMPLETION, min_size=1, max_size=3), min_size=1, max_size=3), max_size=8)


def play(tree, rounds, after=lambda tree: None):
    """Run rounds of (per leaf) completions; the selected leaves."""
    selected = []
    for number, round_ in enumerate(rounds):
        if tree.exhausted():
            break
        leaves = [tree.select(2) for _ in round_]
        selected += leaves
        for leaf in leaves:
            assert tree.column("end")[leaf] == OPEN
            tree.release(leaf, 2)
        ends = [
            (tree.insert(leaf, steps(*texts), end, number)[0], reward)
            for leaf, completions in zip(leaves, round_, strict=True)
            for texts, end, reward in completions
        ]
        for end, reward in ends:
            tree.backup(end, reward)
        after(tree)
    return selected


def check_invariants(tree):
    parent, visits, end = (tree.column(name) for name in ("parent", "visits", "end"))
    seen = visits + tree.column("unscored")
    assert not tree.column("in_flight").any()
    paths = set()
    for node in range(1, len(tree)):
        assert parent[node] < node
        assert node in tree.children[parent[node]]
    for node in range(len(tree)):
        children = tree.children[node]
        assert visits[node] >= sum(visits[child] for child in children)
        assert seen[node] >= sum(seen[child] for child in children)
        assert 0.0 <= tree.value(node) <= 1.0
        assert (end[node] == OPEN) or not children
        known = [tree.column("best")[child] for child in children]
        assert tree.column("best")[node] == max(known, default=tree.column("best")[node])
        # Every path that was inserted came to an end.
        assert end[node] != OPEN or children or node == 0
        alive = bool(tree.column("alive")[node])
        assert alive == (tree.samplable(node) or any(tree.column("alive")[child] for child in children))
        if end[node] != OPEN:
            assert not alive
            key = (" ".join(tree.text(node).split()), int(end[node]))
            assert key not in paths
            paths.add(key)


@given(LIMITS, ROUNDS)
@settings(deadline=None, max_examples=200)
def test_invariants_hold_after_every_round(limits, rounds):
    tree = SearchTree(limits)
    play(tree, rounds, check_invariants)


@given(LIMITS, ROUNDS, st.integers(0, 8))
@settings(deadline=None, max_examples=100)
def test_a_tree_from_its_state_goes_on_exactly_as_the_tree_itself(limits, rounds, cut):
    whole, first = SearchTree(limits), SearchTree(limits)
    selected = play(whole, rounds)
    head = play(first, rounds[:cut])
    second = SearchTree.from_state(limits, json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    # Rounds are numbered anew by `play`, so compare without the column that stores them.
    assert head + play(second, rounds[cut:]) == selected
    drop = ("round",)
    assert {k: v for k, v in second.state().items() if k not in drop} == {
        k: v for k, v in whole.state().items() if k not in drop
    }


@given(ROUNDS, st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.0, 0.25, 1.0])), max_size=6))
@settings(deadline=None, max_examples=60)
def test_revised_rewards_give_the_tree_that_had_them_from_the_start(rounds, changes):
    tree, log = SearchTree(Limits()), []
    for texts, end, reward in (item for round_ in rounds for leaf in round_ for item in leaf):
        terminal, _ = tree.insert(0, steps(*texts), end, 0)
        known = dict(log)
        log.append((terminal, known.get(terminal, reward)))
        tree.backup(*log[-1])
    final = dict(log)
    for place, reward in changes:
        if log and final[log[place % len(log)][0]] is not None:
            final[log[place % len(log)][0]] = reward
            tree.revise(log[place % len(log)][0], reward)
    again = SearchTree.from_state(Limits(), tree.state())
    again.column("visits")[:], again.column("unscored")[:] = 0, 0
    again.column("value_sum")[:], again.column("best")[:] = 0.0, NONE
    for terminal, _ in log:
        again.backup(terminal, final[terminal])
    for name in ("visits", "unscored", "value_sum", "best"):
        assert again.column(name).tolist() == pytest.approx(tree.column(name).tolist())
