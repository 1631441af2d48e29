"""Trees on the terminal."""

import io

import pytest
from rich.console import Console

from raylm.config import Config
from raylm.errors import UserError
from raylm.records import Node, Trajectory, Tree, to_table
from raylm.search.show import render_tree, show, winner
from raylm.storage import StageRun


def node(id, parent, text, *, visits=1, value=0.0, terminal=False):
    return Node(id, parent, text, [id], -1.0, visits, value, terminal, 0)


def path(ids, verdict, answer="7", finish="stop"):
    return Trajectory(
        ids, "".join(f"step {i}\n" for i in ids), answer, verdict, float(verdict == "correct"), 3, -2.5, finish
    )


def tree(problem_id="sum-1", trajectories=()):
    nodes = [
        node(0, -1, "", visits=4, value=2.0),
        node(1, 0, "3 + 4 = 7\n", visits=3, value=2.0),
        node(2, 1, "Answer: [7]", value=1.0, terminal=True),
        node(3, 1, "so\n", value=1.0),
        node(4, 3, "", value=1.0, terminal=True),
        node(5, 0, "3 + 4 = 8", terminal=True),
    ]
    return Tree(f"tree-of-{problem_id}", problem_id, "sums", "3 + 4?", "7", "exact", "m", "r", 0, "h", 2, nodes,
                list(trajectories), 10, 20)  # fmt: skip


FULL = tree(trajectories=[path([1, 3, 4], "correct"), path([1, 2], "correct"), path([5], "wrong", "", "length")])


def rendered(value):
    buffer = io.StringIO()
    Console(file=buffer, width=120).print(render_tree(value))
    return buffer.getvalue()


def test_nodes_show_value_visits_verdict_and_the_path_that_won():
    text = rendered(FULL)
    assert "1 3 + 4 = 7  Q 0.67 N 3" in text
    assert "2 Answer: [7]  Q 1.00 N 1  ✓ correct: 7" in text  # markup in a model's words is harmless
    assert "4 (ends here)" in text
    assert "✗ wrong: ran out of tokens" in text
    assert "2 correct, 1 wrong (1 ran out of tokens)" in text
    won = text.partition("the path that won (2 steps")[2]
    assert [line.strip() for line in won.rstrip().splitlines()[1:]] == ["step 1", "step 2"]


def test_the_winner_is_the_shortest_correct_path_then_the_one_of_highest_value():
    assert winner(FULL).node_ids == [1, 2]
    equal = tree(trajectories=[path([1, 2], "correct"), path([0, 4], "correct")])
    assert winner(equal).node_ids == [1, 2]
    assert winner(tree(trajectories=[path([5], "wrong")])) is None
    assert "no path won" in rendered(tree(trajectories=[path([5], "wrong")]))


class Empty(Config):
    """Stands for a stage's config."""


def artefact(tmp_path, stage="explore"):
    run = StageRun(stage, Empty(), str(tmp_path / "out"))
    run.write_rows([to_table(Tree, [FULL]), to_table(Tree, [tree("sum-2")])])
    run.finish(2)
    return str(tmp_path / "out")


def test_a_tree_is_found_by_its_id_or_its_problems(tmp_path, capsys):
    out = artefact(tmp_path)
    show(out, "sum-1")
    by_problem = capsys.readouterr().out
    show(out, "tree-of-sum-1")
    assert capsys.readouterr().out == by_problem
    assert "problem sum-1" in by_problem


def test_an_unknown_id_lists_near_ones(tmp_path):
    out = artefact(tmp_path)
    with pytest.raises(UserError, match=r"no tree or problem 'sum-3'; near ids: sum-[12], sum-[12]"):
        show(out, "sum-3")
    with pytest.raises(UserError, match="near ids: sum-1"):
        show(out, "£££")


def test_other_artefacts_are_refused(tmp_path):
    with pytest.raises(UserError, match="this is the artefact of finetune"):
        show(artefact(tmp_path, "finetune"), "sum-1")
    with pytest.raises(UserError, match="no finished artefact"):
        show(str(tmp_path / "nothing"), "sum-1")
