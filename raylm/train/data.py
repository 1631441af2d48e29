"""Training samples from chains, and the order in which a run sees them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raylm.errors import UserError
from raylm.llm.chat import IGNORE, training_ids
from raylm.rows import read_rows
from raylm.storage import MANIFEST, Store
from raylm.train.config import FinetuneConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Sample:
    """A tokenized chain."""

    id: str
    ids: list[int]
    labels: list[int]
    task: str = ""

    @property
    def label_tokens(self) -> int:
        """Tokens that enter the loss."""
        return sum(label != IGNORE for label in self.labels)


def read_all(config: FinetuneConfig) -> tuple[list[dict[str, Any]], str]:
    """The rows of all tasks, each with the name of its own as `task_name`, and a digest of them.

    Raises:
        UserError: as `read_chains`; or two tasks share a chain, which the log could not tell apart.
    """
    if not config.tasks:
        return read_chains(config.chains)
    found: list[dict[str, Any]] = []
    digests: list[str] = []
    owner: dict[str, str] = {}
    for task in config.tasks:
        rows, digest = read_chains(task.chains)
        digests.append(digest)
        for row in rows:
            row["task_name"] = task.name
            row["id"] = f"{task.name}/{row['id']}"
            if row["id"] in owner:
                raise UserError(f"chains={task.chains}: the id {row['id']} is there twice; ids must differ")
            owner[row["id"]] = task.name
        found += rows
    return found, hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def read_chains(path: str) -> tuple[list[dict[str, Any]], str]:
    """Rows with `messages` and `id` from an artefact or a JSONL or Parquet file, and a digest of them.

    Raises:
        UserError: nothing readable is there, or a row is malformed; the message names file and line.
    """
    store = Store(path)
    if store.exists(MANIFEST):
        manifest = store.manifest()
        assert manifest is not None
        found, digest = store.read_data().to_pylist(), manifest.digest()
        placed = [(f"{path}:{number}", row) for number, row in enumerate(found, start=1)]
        if not placed:
            raise UserError(f"chains={path}: no rows")
    else:
        placed, digest = read_rows("chains", path, "chats, or a finished synthesize artefact")
    for number, (place, row) in enumerate(placed, start=1):
        _check(row, place)
        row["id"] = str(row.get("id", number))
    return [row for _, row in placed], digest


def file_digest(path: str) -> str:
    """Of a file's content, for the inputs of a manifest.

    Raises:
        UserError: no such file.
    """
    store, name = Store.of_file(path)
    if not store.exists(name):
        raise UserError(f"{path}: no such file")
    return hashlib.sha256(store.read_bytes(name)).hexdigest()[:16]


def encode(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, config: FinetuneConfig) -> list[Sample]:
    """Samples with labels on the response and its stop token. Overlong rows are left out and counted by the caller.

    Raises:
        UserError: too many rows are overlong, or the chat template gives a row no token to train on.
    """
    samples: list[Sample] = []
    overlong: list[Sample] = []
    for row in rows:
        ids, labels = training_ids(tokenizer, row["messages"])
        sample = Sample(row["id"], ids, labels, row.get("task_name", ""))
        (samples if len(ids) <= config.max_length else overlong).append(sample)
    if len(overlong) > config.max_overlong_share * len(rows) or not samples:
        longest = max(overlong, key=lambda sample: len(sample.ids))
        raise UserError(
            f"{len(overlong)} of {len(rows)} chains are longer than max_length={config.max_length} (longest: "
            f"{longest.id} with {len(longest.ids)} tokens), more than max_overlong_share allows; raise either"
        )
    return samples


def deal(batch: list[int], samples: list[Sample], rank: int, world: int, micro: int) -> list[list[int]]:
    """This rank's micro-batches of a global batch: alike in length within one, alike in tokens over ranks."""
    ordered = sorted(batch, key=lambda index: (-len(samples[index].ids), index))
    mine = ordered[rank::world]
    return [mine[start : start + micro] for start in range(0, len(mine), micro)]


def collate(samples: list[Sample], padding: int, packed: bool = False) -> dict[str, torch.Tensor]:
    """Tensors of a forward pass; see `Objective.forward`.

    Samples are rows, padded on the right to the longest, or, packed, all end to end in one row, where positions that
    begin anew keep them apart: attention sees one sample only.
    """
    import torch

    lengths = [len(sample.ids) for sample in samples]
    if packed:
        return {
            "ids": torch.tensor([[token for sample in samples for token in sample.ids]]),
            # The first token of a sample is predicted from nothing: not from the end of the one before it.
            "labels": torch.tensor([[
                label for sample in samples for label in (IGNORE, *sample.labels[1:])
            ]]),
            "owner": torch.tensor([[number for number, length in enumerate(lengths) for _ in range(length)]]),
            "positions": torch.tensor([[place for length in lengths for place in range(length)]]),
        }  # fmt: skip
    shape = (len(samples), max(lengths))
    ids, labels = torch.full(shape, padding), torch.full(shape, IGNORE)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, sample in enumerate(samples):
        ids[row, : lengths[row]] = torch.tensor(sample.ids)
        mask[row, : lengths[row]] = 1
        labels[row, : lengths[row]] = torch.tensor(sample.labels)
    owner = torch.arange(len(samples)).unsqueeze(1).expand(shape).contiguous()
    return {"ids": ids, "labels": labels, "owner": owner, "mask": mask}


def _check(row: dict[str, Any], place: str) -> None:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{place}: no field 'messages' with a list of turns")
    for turn in messages:
        if (
            not isinstance(turn, dict)
            or not isinstance(turn.get("content"), str)
            or not isinstance(turn.get("role"), str)
        ):
            raise UserError(f"{place}: every message needs a text role and a text content")
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise UserError(f"{place}: the last message must be the assistant's and not empty")
