"""The log of samples from a run of Hugging Face's Trainer, for `raylm diagnose log=`.

    log = SampleLog("samples.jsonl", train_dataset, ids)
    Trainer(..., train_dataset=train_dataset, callbacks=[log])

A sample is known again by its tokens, whatever sampler and collator bring it; so packed batches, which have no samples,
cannot be logged, and are counted. Losses come from the forward pass that the Trainer makes anyway.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import TrainerCallback

from raylm.errors import UserError
from raylm.llm.chat import IGNORE


class SampleLog(TrainerCallback):
    """Writes step, id, loss (nats a label token) and token accuracy of each sample at each step it is trained on."""

    def __init__(self, path: str | Path, dataset: Iterable[Any], ids: Sequence[str] | None = None) -> None:
        """Log to a JSONL file.

        Args:
            path: the file; processes of one machine append to it together.
            dataset: the tokenized samples, each with `input_ids`.
            ids: of the samples, in their order; their numbers from 1 on if there are none, as `raylm diagnose` numbers
                rows without an id.

        Raises:
            UserError: a sample has no `input_ids`, or there are not as many ids as samples.
        """
        self.path, self.unknown = Path(path), 0
        self._ids: dict[tuple[int, ...], str] = {}
        self._rows: list[dict[str, Any]] = []
        self._step, self._hook = 0, None
        count = 0
        for count, sample in enumerate(dataset, 1):
            if "input_ids" not in sample:
                raise UserError(f"sample {count} of the dataset has no input_ids; give the tokenized dataset")
            if ids is not None and count > len(ids):
                break
            tokens = torch.as_tensor(sample["input_ids"]).flatten().tolist()
            self._ids.setdefault(tuple(tokens), str(ids[count - 1] if ids is not None else count))
        if ids is not None and count != len(ids):
            raise UserError(f"there are {len(ids)} ids, but {count} or more samples in the dataset")

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin the file, or cut it back to where a resumed run goes on, and listen to the model."""
        del args, control, kwargs
        if state.is_local_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_text().splitlines() if self.path.exists() and state.global_step else []
            kept = [line for line in lines if _step(line) <= state.global_step]
            self.path.write_text("".join(line + "\n" for line in kept))
        self._hook = model.register_forward_hook(self._heard, with_kwargs=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember which step is being taken."""
        del args, control, kwargs
        self._step = state.global_step + 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Append the step's samples to the file."""
        del args, state, control, kwargs
        rows, self._rows = self._rows, []
        with self.path.open("a") as sink:
            sink.write("".join(json.dumps(row) + "\n" for row in rows))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop listening."""
        del args, state, control, kwargs
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @torch.no_grad()
    def _heard(self, model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Losses of the samples of one forward pass in training."""
        labels, ids = kwargs.get("labels"), kwargs.get("input_ids")
        if not model.training or ids is None or labels is None:
            return
        logits = getattr(output, "logits", None)
        if logits is None:
            raise UserError(
                "the model gave no logits, so that samples' losses are unknown; turn fused losses (liger) off to log"
            )
        mask = kwargs.get("attention_mask")
        for row in range(len(ids)):
            tokens = ids[row][mask[row].bool()] if mask is not None and mask.shape == ids.shape else ids[row]
            name = self._ids.get(tuple(tokens.tolist()))
            wanted = labels[row, 1:] != IGNORE
            if name is None or not wanted.any():
                self.unknown += 1
                continue
            chosen, targets = logits[row, :-1][wanted].float(), labels[row, 1:][wanted]
            self._rows.append({
                "step": self._step,
                "id": name,
                "loss": float(F.cross_entropy(chosen, targets)),
                "token_accuracy": float((chosen.argmax(-1) == targets).float().mean()),
            })  # fmt: skip


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # it was cut off by what ended the run
