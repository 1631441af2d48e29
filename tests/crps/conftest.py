"""Hand-made trees: a list of responses becomes the tree that they would have grown."""

from dataclasses import replace

import pytest

from raylm.records import Node, Trajectory, Tree
from raylm.tasks.answers import extract_answer


def tree_of(question, responses, answer="12", visits=None, **changes):
    """A tree from (text, verdict) or (text, verdict, finish_reason) in the order found; one step a line.

    `visits` gives the number of times that each response was found, one by default.
    """
    nodes = [Node(0, -1, "", [], 0.0, 0, 0.0, False, -1)]
    children = {}
    found = []
    for index, (text, verdict, *reason) in enumerate(responses):
        path, at = [], 0
        lines = text.splitlines(keepends=True)
        for number, line in enumerate(lines):
            key = (at, line, number == len(lines) - 1)
            if key not in children:
                children[key] = len(nodes)
                nodes.append(Node(len(nodes), at, line, [len(nodes)], -0.5, 0, 0.0, key[2], 0))
            at = children[key]
            path.append(at)
        times = visits[index] if visits else 1
        reward = float(verdict == "correct")
        for node in (0, *path):
            old = nodes[node]
            nodes[node] = replace(old, visits=old.visits + times, value_sum=old.value_sum + times * reward)
        ended = reason[0] if reason else "stop"
        found.append(Trajectory(path, text, extract_answer(text), verdict, reward, len(path), -0.5 * len(path), ended))
    tree = Tree(
        "tree-1", "problem-1", "sums", question, answer, "number", "explorer", "rev", 3, "hash", 2, nodes, found, 50, 90
    )  # fmt: skip
    return replace(tree, **changes)


@pytest.fixture(scope="session")
def tree():
    """The maker of trees: tree(question, [(text, verdict), ...], answer=..., visits=[...])."""
    return tree_of


def sums(terms, slip_at=None, slip=0):
    """A response that adds up `terms`, one operation a line, wrong by `slip` at the operation `slip_at`."""
    lines, total = [], terms[0]
    for index, term in enumerate(terms[1:]):
        result = total + term + (slip if index == slip_at else 0)
        lines.append(f"{total} {'-' if term < 0 else '+'} {abs(term)} = {result}")
        total = result
    return "\n".join([*lines, f"Answer: {total}"])


def sum_tree(terms, slips, **changes):
    """A tree over a sum: its right response, and a wrong one for every (operation, slip)."""
    wrong = dict.fromkeys(sums(terms, at, slip) for at, slip in slips)
    question = f"What is {' + '.join(map(str, terms))}?"
    responses = [(sums(terms), "correct"), *((text, "wrong") for text in wrong)]
    return tree_of(question, responses, answer=str(sum(terms)), **changes)


@pytest.fixture(scope="session")
def sum_response():
    """The writer of right and wrong sums: sum_response(terms, slip_at, slip)."""
    return sums


@pytest.fixture(scope="session")
def grown_sum():
    """The maker of trees over sums: grown_sum(terms, [(operation, slip), ...])."""
    return sum_tree
