"""Small trees made from responses alone."""

import pytest

from raylm.records import Node, Trajectory, Tree


def grow(question, answer, responses, problem_id="p0"):
    """A tree in which every response is a path, equal steps merged; the gold answer decides verdicts."""
    nodes = [Node(0, -1, "", [], 0.0, len(responses), 0.0, False, -1)]
    trajectories = []
    for response in responses:
        lines = response.splitlines(keepends=True)
        path, parent = [], 0
        reward = float(lines[-1].strip() == f"Answer: {answer}")
        for depth, line in enumerate(lines):
            last = depth == len(lines) - 1
            found = next((n for n in nodes if n.parent == parent and n.text == line and n.terminal == last), None)
            if found is None:
                found = Node(len(nodes), parent, line, [1], -1.0, 0, 0.0, last, 0)
                nodes.append(found)
            nodes[found.id] = Node(
                found.id, found.parent, line, [1], -1.0, found.visits + 1, found.value_sum + reward, last, 0
            )
            path.append(found.id)
            parent = found.id
        verdict = "correct" if reward else "wrong"
        trajectories.append(
            Trajectory(path, response, lines[-1].split()[-1], verdict, reward, len(lines), -1.0, "stop")
        )
    return Tree(
        id=f"tree-{problem_id}",
        problem_id=problem_id,
        task="sums",
        question=question,
        answer=answer,
        checker="number",
        model="m",
        revision="r",
        seed=0,
        config_hash="h",
        rounds=1,
        nodes=nodes,
        trajectories=trajectories,
        prompt_tokens=1,
        generated_tokens=1,
    )


GOOD = "13 - 4 = 9\n9 + 2 = 11\nAnswer: 11"
LONG = "4 + 2 = 6\n6 + 13 = 19\n19 - 8 = 11\nAnswer: 11"
SLIP = "13 - 4 = 9\n9 + 2 = 12\nAnswer: 12"
MISREAD = "13 - 2 = 11\n11 + 4 = 15\nAnswer: 15"
EARLY = "13 - 4 = 9\nAnswer: 9"


@pytest.fixture
def tree():
    """Two correct paths, three wrong ones that fail in different ways."""
    return grow("What is 13 - 4 + 2?", "11", [GOOD, LONG, SLIP, MISREAD, EARLY])


@pytest.fixture(name="grow")
def _grow():
    return grow
