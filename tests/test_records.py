"""Rows survive Parquet exactly."""

from hypothesis import given
from hypothesis import strategies as st

from raylm import records
from raylm.records import Chain, Message, Node, Problem, Trajectory, Tree

_text = st.text(max_size=12)
_ids = st.lists(st.integers(0, 2**31 - 1), max_size=4)
_small = st.integers(0, 1000)
_real = st.floats(allow_nan=False, allow_infinity=False)
_node = st.builds(Node, _small, _small, _text, _ids, _real, _small, _real, st.booleans(), _small)
_trajectory = st.builds(Trajectory, _ids, _text, _text, _text, _real, _small, _real, _text)
_tree = st.builds(
    Tree,
    **dict.fromkeys(("id", "problem_id", "task", "question", "answer", "checker", "model", "revision"), _text),
    seed=_small,
    config_hash=_text,
    rounds=_small,
    nodes=st.lists(_node, max_size=3),
    trajectories=st.lists(_trajectory, max_size=3),
    prompt_tokens=_small,
    generated_tokens=_small,
    strategy=_text,
    draws=_ids,
    draw_tokens=_ids,
    picked=_small,
)


@given(st.lists(_tree, max_size=3))
def test_trees_round_trip(trees):
    assert records.from_table(Tree, records.to_table(Tree, trees)) == trees


@given(st.lists(st.builds(Problem, _text, _text, _text, _text), max_size=3))
def test_problems_round_trip(problems):
    assert records.from_table(Problem, records.to_table(Problem, problems)) == problems


def test_chains_hold_messages_in_chat_form():
    chain = Chain(
        id="c",
        messages=[Message("user", "2 + 2?"), Message("assistant", "4")],
        problem_id="p",
        task="t",
        tree_id="t0",
        method="crps",
        contrast="hard",
        anchor_nodes=[1],
        negative_nodes=[2],
        pivot_node=0,
        critique_json="{}",
        critique_hash="",
        verdict="correct",
        explorer_model="m",
        explorer_revision="r",
        analyst="structural",
        synthesizer="structural",
        seed=0,
        tokens=0,
    )
    table = records.to_table(Chain, [chain])
    assert table.to_pylist()[0]["messages"] == [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    assert records.from_table(Chain, table) == [chain]


def test_an_empty_table_keeps_its_schema():
    assert records.to_table(Tree, []).schema == records.schema(Tree)
