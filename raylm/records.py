"""The rows that stages exchange, as dataclasses with their Parquet schemas.

Every stage reads and writes these with `to_table` and `from_table`. Nested values are real Parquet lists and
structs, so that any tool reads them; free-form values are JSON text in a column whose name says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

import pyarrow as pa

Verdict = Literal["correct", "wrong", "unverifiable"]
"""What a check says of an answer. A check that hangs or crashes is `unverifiable`, never `wrong`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question whose answer can be checked."""

    id: str
    task: str
    """Name of the source it came from; checkers and reports group by it."""
    question: str
    answer: str
    """The gold answer as text. It never enters a prompt."""
    checker: str = "auto"
    """How an answer is verified: a key of `raylm.tasks.verify.CHECKERS`."""
    metadata_json: str = "{}"


@dataclass(frozen=True, slots=True)
class Node:
    """One step of reasoning in a search tree; node 0 is the question."""

    id: int
    parent: int
    """-1 for the root."""
    text: str
    token_ids: list[int]
    logprob: float
    """Sum of the log-probabilities of this step's tokens under the explorer, in nats."""
    visits: int
    value_sum: float
    """Sum of backed-up rewards; the mean value Q is value_sum / visits."""
    terminal: bool
    round: int
    """The expansion round that made the node; -1 for the root."""

    @property
    def value(self) -> float:
        """Mean backed-up reward, 0.0 before the first visit."""
        return self.value_sum / self.visits if self.visits else 0.0


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One finished path from the question to an answer, with the text that the verifier scored."""

    node_ids: list[int]
    """The path without the root; its steps' texts concatenate to `text`."""
    text: str
    answer: str
    """The extracted answer, empty when none was found."""
    verdict: str
    reward: float
    """What was backed up, in [0, 1]; 0 for an answer of which nothing is known."""
    tokens: int
    """Tokens of `text` under the explorer's tokenizer."""
    logprob: float
    finish_reason: str
    """`stop` when the model ended by itself, `length` when it ran out of tokens."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A finished search over one problem."""

    id: str
    problem_id: str
    task: str
    question: str
    answer: str
    checker: str
    model: str
    revision: str
    seed: int
    config_hash: str
    rounds: int
    """Expansions."""
    nodes: list[Node]
    trajectories: list[Trajectory]
    prompt_tokens: int
    """Prompt tokens over all requests, those that a prefix cache spared included. How many were spared depends on
    what else was in flight, so it stands with the timings and not here."""
    generated_tokens: int
    metadata_json: str = "{}"
    """The problem's, which its checker may need."""
    strategy: str = "mcts"
    """Where samples were drawn: `mcts`, `beam`, `best_of_n` or `majority`."""
    draws: list[int] = field(default_factory=list)
    """Index of the trajectory in which each completion ended, in the order of the search; equal ones share one."""
    draw_tokens: list[int] = field(default_factory=list)
    """Tokens generated for each of `draws`: with them, what a search had found is known at any number of tokens."""
    picked: int = -1
    """Index of the trajectory that the search would answer with; -1 when there is none."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat in the common {role, content} form."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chain:
    """One training example in chat form, with the lineage of every decision that made it."""

    id: str
    messages: list[Message]
    problem_id: str
    task: str
    tree_id: str
    method: str
    """`crps`, or the baseline that made it (`best_path`, `rejection`, ...)."""
    contrast: str
    """`hard` (good against wrong), `soft` (short against long), or `none`."""
    anchor_nodes: list[int]
    negative_nodes: list[int]
    pivot_node: int
    """Last node that anchor and negative share; -1 without a pair."""
    critique_json: str
    critique_hash: str
    verdict: str
    explorer_model: str
    explorer_revision: str
    analyst: str
    synthesizer: str
    seed: int
    tokens: int
    """Tokens generated for this chain beyond the search (0 for structural analyst and synthesizer)."""
    writer_model: str = ""
    """The language model that analysed or wrote; empty when none did."""
    writer_revision: str = ""
    temperature: float = 0.0
    """Of the analyst's and synthesizer's sampling."""
    tree_config: str = ""
    """Hash of the config that the tree was grown with, temperatures and budgets included."""
    tree_seed: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """One model answer to one evaluation problem."""

    suite: str
    problem_id: str
    task: str
    question: str
    gold: str
    response: str
    answer: str
    verdict: str
    prompt_tokens: int
    generated_tokens: int
    finish_reason: str
    sample: int = field(default=0)
    """Index of the sample; 0 is the greedy one."""


_NODE = pa.struct(
    [
        ("id", pa.int32()),
        ("parent", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprob", pa.float64()),
        ("visits", pa.int32()),
        ("value_sum", pa.float64()),
        ("terminal", pa.bool_()),
        ("round", pa.int32()),
    ]
)
_TRAJECTORY = pa.struct(
    [
        ("node_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("verdict", pa.string()),
        ("reward", pa.float64()),
        ("tokens", pa.int32()),
        ("logprob", pa.float64()),
        ("finish_reason", pa.string()),
    ]
)
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_TYPES: dict[str, pa.DataType] = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
_NESTED: dict[str, pa.DataType] = {
    "list[int]": pa.list_(pa.int32()),
    "list[Node]": pa.list_(_NODE),
    "list[Trajectory]": pa.list_(_TRAJECTORY),
    "list[Message]": pa.list_(_MESSAGE),
}
_CHILDREN: dict[str, dict[str, type]] = {
    "Tree": {"nodes": Node, "trajectories": Trajectory},
    "Chain": {"messages": Message},
}

Row = TypeVar("Row", Problem, Tree, Chain, Judgement)


def schema(row_type: type) -> pa.Schema:
    """The Parquet schema of a record class, columns in the order of its fields."""
    types = {**_TYPES, **_NESTED}
    return pa.schema([(name, types[str(hint)]) for name, hint in row_type.__annotations__.items()])


def to_table(row_type: type[Row], rows: Iterable[Row]) -> pa.Table:
    """Rows as an Arrow table with exactly `schema(row_type)`."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=schema(row_type))


def from_dicts(row_type: type[Row], dicts: Sequence[dict[str, Any]]) -> list[Row]:
    """Rows from plain dicts, as Arrow, JSON or Ray Data hand them out."""
    children = _CHILDREN.get(row_type.__name__, {})
    rows = []
    for item in dicts:
        nested = {name: [child(**value) for value in item[name]] for name, child in children.items()}
        rows.append(row_type(**{**item, **nested}))
    return rows


def from_table(row_type: type[Row], table: pa.Table) -> list[Row]:
    """Rows from a table written by `to_table`."""
    return from_dicts(row_type, table.to_pylist())
