"""Training of a text branch's adapter: the plain model stays, a LoRA adapter learns to write the side texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from raylm.errors import UserError
from raylm.llm import chat
from raylm.srm.backbone import Prompt
from raylm.srm.config import BranchConfig, WriterConfig
from raylm.srm.sidetext import AdapterWriter


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """How an adapter is trained."""

    rank: int = 8
    """Of its matrices."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Modules that it adapts."""
    steps: int = 200
    """Optimizer steps."""
    batch_size: int = 8
    """Examples of a step."""
    lr: float = 1e-3
    """Of AdamW; constant."""
    seed: int = 0
    """Of initial weights and order."""


def train_adapter(
    writer: WriterConfig,
    spec: BranchConfig,
    examples: Sequence[tuple[Prompt, str, str]],
    out: str | Path,
    settings: AdapterSettings | None = None,
) -> list[float]:
    """Train an adapter on a branch's own auxiliary texts and save it; returns the loss of every step.

    Args:
        writer: which language model, and how it is asked.
        spec: the branch; its prompt is made from its name and range.
        examples: prompt, response, and the side text to write. None of their prompts should be among those that the
            fusion learns from: texts are not cross-fitted.
        out: directory; name it as the branch's `adapter`.

    Raises:
        UserError: there are no examples, or one leaves no room in the context.

    source: L_i = -mean log P_i(a_i | p, r), method page (S); the mean is over the tokens of side texts and the one
    that ends them.
    """
    from peft import LoraConfig, get_peft_model

    if not examples:
        raise UserError(f"branch {spec.name}: no examples to train its adapter on")
    own = settings or AdapterSettings()
    torch.manual_seed(own.seed)
    asker = AdapterWriter(writer, [spec.model_copy(update={"adapter": ""})])
    lora = LoraConfig(r=own.rank, lora_alpha=2 * own.rank, target_modules=list(own.targets), task_type="CAUSAL_LM")
    model = get_peft_model(asker.model, lora).train()
    rows = [_labelled(asker, spec, example) for example in examples]
    optimizer = torch.optim.AdamW([param for param in model.parameters() if param.requires_grad], lr=own.lr)
    draws, losses = np.random.default_rng(own.seed), []
    for _ in range(own.steps):
        batch = [rows[place] for place in draws.integers(0, len(rows), own.batch_size)]
        loss = model(**_padded(batch, asker.tokenizer.pad_token_id or 0)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.save_pretrained(str(out))
    return losses


def _labelled(
    asker: AdapterWriter, spec: BranchConfig, example: tuple[Prompt, str, str]
) -> tuple[list[int], list[int]]:
    """Ids and labels of a question and its side text; the question is not learned."""
    prompt, response, text = example
    asked = asker.ask(spec, prompt, response)
    question = chat.prompt_ids(asker.tokenizer, asked)
    ids, labels = chat.training_ids(asker.tokenizer, [*asked, {"role": "assistant", "content": text}])
    if len(ids) - len(question) > asker.config.max_tokens + 1:
        raise UserError(
            f"branch {spec.name}: the side text {text[:40]!r} has more than writer.max_tokens="
            f"{asker.config.max_tokens} tokens; shorten it or raise that"
        )
    return ids, labels


def _padded(rows: Sequence[tuple[list[int], list[int]]], padding: int) -> dict[str, torch.Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    gaps = [longest - len(ids) for ids, _ in rows]
    ids = [own + [padding] * gap for (own, _), gap in zip(rows, gaps, strict=True)]
    labels = [own + [chat.IGNORE] * gap for (_, own), gap in zip(rows, gaps, strict=True)]
    mask = [[1] * (longest - gap) + [0] * gap for gap in gaps]
    return {
        "input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "attention_mask": torch.tensor(mask),
    }  # fmt: skip
