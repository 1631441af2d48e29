"""The base model of a world: a Llama of under a million parameters, pretrained in about a minute."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch.nn import functional as F

from jobs.studies.ilp.world import World, write_tokenizer
from raylm.llm import models
from raylm.llm.chat import prompt_ids

PASSES, BATCH, LR = 14, 64, 4e-3
"""Passes over the lines, unless told otherwise."""


def base(world: World, folder: Path, passes: int = PASSES) -> Path:
    """The directory of the base model, made where it is not there."""
    path = folder / "base"
    if (path / "config.json").exists():
        return path
    from transformers import LlamaConfig, LlamaForCausalLM

    partial = folder / "base.partial"
    write_tokenizer(partial, world.words())
    tokenizer = models.load_tokenizer(partial)
    torch.manual_seed(world.seed)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=3, head_dim=32, max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(shape).float()
    end = int(tokenizer.eos_token_id or 0)
    lines = []
    for question, text in world.lines:
        asked = prompt_ids(tokenizer, [{"role": "user", "content": question}]) if question else []
        lines.append([*asked, *tokenizer.encode(text, add_special_tokens=False), end])
    _train(model, lines, world.seed, passes)
    model.generation_config.pad_token_id = shape.pad_token_id
    model.save_pretrained(partial)
    partial.rename(path)
    return path


def _train(model: torch.nn.Module, lines: list[list[int]], seed: int, passes: int) -> None:
    """Every token of every line, in passes of their own order."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
    steps, step = passes * math.ceil(len(lines) / BATCH), 0
    for _ in range(passes):
        order = torch.randperm(len(lines), generator=draw).tolist()
        order.sort(key=lambda place: len(lines[place]))  # stable: of lines of a length the order stays random
        starts = torch.randperm(math.ceil(len(order) / BATCH), generator=draw).tolist()
        for start in starts:
            batch = [torch.tensor(lines[place]) for place in order[start * BATCH : (start + 1) * BATCH]]
            ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-100)
            logits = model(input_ids=ids.clamp_min(0), attention_mask=(ids >= 0).long(), use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), ignore_index=-100)
            rate = min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.param_groups[0]["lr"] = LR * rate
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
