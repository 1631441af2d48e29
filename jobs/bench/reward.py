"""What do branches cost, beside a plain sequence classifier and beside a generative judge?

    python -m jobs.bench.reward [--texts N] [--judged N] [--tokens N] [--repeats N] [--threads N]

Five branches over the plain classifier of the same encoder: the same texts, batches and padding, tokenization counted
in both. The judge is SmolLM2-135M-Instruct, which reads a pair and reasons before it names the better response; all
of its tokens count. Where it has named none after --tokens, it is made to. Pairs are human preferences between
answers ($RAYLM_DATA, reward_pairs/qa_feedback_dev), whose passages are left out so that the small judge can read
them. Seconds are those of the CPU, so that other work on the machine does not count: leave threads at 1.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from jobs import results
from raylm.llm import chat, engine, models
from raylm.llm.config import EngineConfig
from raylm.llm.protocol import Engine, Sampling
from raylm.srm import backbone
from raylm.srm.config import DEFAULT_BRANCHES, BranchConfig, FusionConfig
from raylm.srm.model import BATCH, RewardModel
from raylm.srm.structure import Structure

HEADS = tuple(BranchConfig(name=name) for name in ("relevance", "coverage", "support", "style", "quality"))
MAX_LENGTH = 384
ASKED = (
    "Question: {prompt}\n\nResponse A: {first}\n\nResponse B: {second}\n\nWhich response answers the question better? "
    "Give a short reason, then end with 'Better: A' or 'Better: B'."
)


def main(options: argparse.Namespace) -> None:
    """Measure, and write bench/results/reward.json."""
    pairs = _pairs(max(options.texts // 2, options.judged))
    texts = [(row["prompt"], row[side]) for row in pairs for side in ("chosen", "rejected")][: options.texts]
    path = models.resolve_encoder("all-minilm-l6-v2").path
    arms = {"heads": _model(path, HEADS), "default": _model(path, DEFAULT_BRANCHES), "plain": Plain(path)}
    rows: list[dict[str, Any]] = []
    for repeat in range(options.repeats):
        seconds = {name: _seconds(arm, texts) for name, arm in arms.items()}
        rows.append(
            {"repeat": repeat, "texts": len(texts), **{f"{name}_seconds": value for name, value in seconds.items()}}
        )
    judged = asyncio.run(_judge(pairs[: options.judged], options.tokens, options.threads))
    for row in rows:
        row |= {"judge_seconds_a_pair": judged["seconds"] / options.judged}
    ratios = {
        "branches_cost_ratio": [row["heads_seconds"] / row["plain_seconds"] for row in rows],
        "default_cost_ratio": [row["default_seconds"] / row["plain_seconds"] for row in rows],
        "scores_per_second": [row["texts"] / row["default_seconds"] for row in rows],
        "speedup_vs_generative": [
            row["judge_seconds_a_pair"] / (2 * row["default_seconds"] / row["texts"]) for row in rows
        ],
    }
    figures, intervals = results.geometric_means(ratios)
    tokens = arms["default"].structure.backbone  # type: ignore[union-attr]
    facts = {
        "judge_tokens_a_pair": judged["tokens"] / options.judged, "judge_accuracy": judged["accuracy"],
        "judge_undecided": judged["undecided"] / options.judged, "judge_forced": judged["forced"] / options.judged,
        "judged_pairs": options.judged,
        "tokens_a_pair": 2 * sum(len(tokens.tokenize(*text).ids) for text in texts) / len(texts),
    }  # fmt: skip
    print(results.write("bench/results/reward", figures | facts, [*rows, judged], intervals=intervals, seeds=[0]))


class Plain:
    """The encoder with one linear output, as transformers has it."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    @torch.inference_mode()
    def score_batch(self, texts: Sequence[tuple[Any, str]]) -> list[float]:
        """Scores in the order given, in batches of like lengths as the reward model's are."""
        read = self.tokenizer([list(text) for text in texts], truncation=True, max_length=MAX_LENGTH)
        order = sorted(range(len(texts)), key=lambda place: len(read["input_ids"][place]))
        found = [0.0] * len(texts)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            columns = {name: [values[place] for place in places] for name, values in read.items()}
            padded = self.tokenizer.pad(columns, return_tensors="pt")
            for place, value in zip(places, self.model(**padded).logits[:, 0].tolist(), strict=True):
                found[place] = value
        return found


def _model(path: Path, specs: Sequence[BranchConfig]) -> RewardModel:
    return RewardModel(Structure(backbone.load(path, max_length=MAX_LENGTH), specs, FusionConfig()), "bench", "bench")


def _seconds(arm: RewardModel | Plain, texts: Sequence[tuple[str, str]]) -> float:
    arm.score_batch(texts[:BATCH])
    start = time.process_time()
    arm.score_batch(texts)
    return time.process_time() - start


async def _judge(pairs: Sequence[dict[str, Any]], tokens: int, threads: int) -> dict[str, Any]:
    """Seconds, tokens and accuracy of the generative judge; each pair is shown in an order drawn by its place."""
    model = await engine.build(EngineConfig(kind="transformers", context=1024), cpus=threads)
    requests = []
    for number, row in enumerate(pairs):
        first, second = (row["chosen"], row["rejected"]) if number % 2 else (row["rejected"], row["chosen"])
        asked = ASKED.format(prompt=row["prompt"], first=first, second=second)
        requests.append(chat.prompt_ids(model.tokenizer, [{"role": "user", "content": asked}]))
    start = time.process_time()
    said = await asyncio.gather(*(_judged(model, request, tokens) for request in requests))
    seconds = time.process_time() - start
    await model.close()
    right = [float((each.choice == "A") == bool(n % 2)) if each.choice else 0.5 for n, each in enumerate(said)]
    return {
        "seconds": seconds, "undecided": sum(not each.choice for each in said), "accuracy": sum(right) / len(pairs),
        "forced": sum(each.forced for each in said), "tokens": sum(each.tokens for each in said),
        "generated": sum(each.generated for each in said),
    }  # fmt: skip


class Verdict(NamedTuple):
    """What the judge says of a pair."""

    choice: str
    """A, B, or nothing."""
    forced: bool
    """Whether it had to be made to choose."""
    tokens: int
    """Read and written."""
    generated: int


async def _judged(model: Engine, request: list[int], tokens: int) -> Verdict:
    """A verdict on a pair.

    A judge that has reached no verdict after its tokens is made to name one: its reasoning is ended for it. What it
    read before is not counted twice.
    """
    first = await model.generate(request, Sampling(temperature=0.0, max_tokens=tokens))
    found = re.findall(r"[Bb]etter:?\s*(?:[Rr]esponse\s*)?([AB])\b", first.completions[0].text)
    spent, written = first.prompt_tokens + first.generated_tokens, first.generated_tokens
    if found:
        return Verdict(found[-1], False, spent, written)
    more = model.tokenizer.encode("\nBetter: Response", add_special_tokens=False)
    thought = [token for token in first.completions[0].token_ids if token != model.tokenizer.eos_token_id]
    last = await model.generate([*request, *thought, *more], Sampling(temperature=0.0, max_tokens=1))
    named = re.match(r"\s*([AB])", last.completions[0].text)
    more_tokens = len(more) + last.generated_tokens
    return Verdict(named[1] if named else "", True, spent + more_tokens, written + last.generated_tokens)


def _pairs(count: int) -> list[dict[str, Any]]:
    path = Path(os.environ["RAYLM_DATA"]) / "reward_pairs/qa_feedback_dev.jsonl.gz"
    with gzip.open(path, "rt") as source:
        rows = [json.loads(line) for line in source][: count * 2 : 2]
    # The question without its passages.
    return [{**row, "prompt": row["prompt"].split("\n\n")[0].partition("Question:")[2].strip()} for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--judged", type=int, default=36)
    parser.add_argument("--tokens", type=int, default=128, help="of reasoning that the judge may generate for a pair")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    main(options)
