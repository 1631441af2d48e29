"""How fast is the trainer, beside TRL's and a bare loop, and what does isolation cost?

    python -m jobs.bench.train [--model M] [--chains PATH] [--steps N] [--repeats N] [--rounds N]

Every arm takes the same optimizer steps on the same tokenized chains in the same batches: full fine-tuning with AdamW
in fp32, one process, padding to the longest of a micro-batch (one arm packs), loss on the responses alone. Arms run one
after another in every repeat, each on a fresh copy of the model, in an order that rotates; ratios are of tokens per
second in the same repeat, so that what else the machine does hits all arms alike. The cost of isolation is a few
percent of a step, so that its three arms (none, a mask that stays, a new mask at every step) take turns step by step in
one process. Without --chains, arithmetic problems with written-out solutions stand in for a synthesized set.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from jobs import results
from raylm.config import build
from raylm.llm import models
from raylm.train.config import FinetuneConfig
from raylm.train.data import Sample, collate, deal, encode, read_chains
from raylm.train.engines import TorchEngine, make_engine
from raylm.train.model import build_model
from raylm.train.plan import Plan
from raylm.train.trainer import Trainer

WARM = 2
"""Steps before the clock starts: allocators and caches are cold."""
_SYSTEM = "Work one operation a line, then write Answer: N."

Arm = Callable[["Bench"], float]


class Bench:
    """What all arms share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.threads = os.cpu_count() or 1
        torch.set_num_threads(self.threads)
        self.model = str(models.resolve(options.model).path)
        self.tokenizer = models.load_tokenizer(self.model)
        self.steps, self.rounds = options.steps, options.rounds
        self.config = self.configured()
        rows = read_chains(options.chains)[0] if options.chains else _sums(160)
        self.samples = encode(rows, self.tokenizer, self.config)
        self.plan = Plan([sample.task for sample in self.samples], self.config)

    def configured(self, **changes: Any) -> FinetuneConfig:
        """The trainer's config with `changes`."""
        base = {
            "model": self.model, "workers": 1, "engine": "torch", "batch_size": 16, "micro_batch": 8, "lr": 2e-5,
            "epochs": 1000, "max_steps": WARM + max(self.steps, self.rounds), "max_length": 512,
            "isolation": {"enabled": False},
        }  # fmt: skip
        return build(FinetuneConfig, base | changes)

    def batches(self) -> list[list[Sample]]:
        """The samples of every step after the warm-up, in order."""
        return [[self.samples[index] for index in self.plan.batch_at(step)] for step in range(WARM, WARM + self.steps)]

    def tokens(self) -> int:
        """Tokens of the timed steps, prompts included, padding not."""
        return sum(len(sample.ids) for batch in self.batches() for sample in batch)


def ours(bench: Bench, **changes: Any) -> float:
    """Seconds of raylm's trainer."""
    trainer = _trainer(bench, **changes)
    start = 0.0
    for step in range(WARM + bench.steps):
        if step == WARM:
            start = time.monotonic()
        trainer.step(step)
    return time.monotonic() - start


def _trainer(bench: Bench, **changes: Any) -> Trainer:
    config = bench.configured(**changes)
    engine = make_engine(build_model(bench.model, config), config, 1, bench.plan.steps)
    return Trainer(config, engine, bench.samples, bench.plan, bench.tokenizer.pad_token_id or 0, ranks=(0, 1))


def bare(bench: Bench) -> float:
    """Seconds of the shortest honest loop: the model's own loss, torch.optim.AdamW, clipping, nothing else."""
    model = models.load_model(bench.model, torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, betas=(0.9, 0.95), weight_decay=0.0)
    start = 0.0
    for step in range(WARM + bench.steps):
        if step == WARM:
            start = time.monotonic()
        batch = bench.plan.batch_at(step)
        labels = sum(bench.samples[index].label_tokens for index in batch)
        for micro in deal(batch, bench.samples, 0, 1, bench.config.micro_batch):
            tensors = collate([bench.samples[index] for index in micro], bench.tokenizer.pad_token_id or 0)
            loss = model(
                input_ids=tensors["ids"],
                attention_mask=tensors["mask"],
                labels=tensors["labels"],
                num_items_in_batch=labels,
                use_cache=False,
            ).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.monotonic() - start


def trl(bench: Bench) -> float:
    """Seconds of TRL's SFTTrainer, fed the same token ids and labels in the same order, micro-batch by micro-batch."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        start = end = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM:
                self.start = time.monotonic()
            self.end = time.monotonic()

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    rows = [
        {"input_ids": bench.samples[index].ids, "labels": bench.samples[index].labels}
        for step in range(WARM + bench.steps)
        for micro in deal(bench.plan.batch_at(step), bench.samples, 0, 1, bench.config.micro_batch)
        for index in micro
    ]
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder, max_steps=WARM + bench.steps, per_device_train_batch_size=bench.config.micro_batch,
            gradient_accumulation_steps=bench.config.batch_size // bench.config.micro_batch, learning_rate=2e-5,
            adam_beta2=0.95, weight_decay=0.0, max_grad_norm=1.0, bf16=False, packing=False, max_length=512,
            gradient_checkpointing=False, use_cpu=not torch.cuda.is_available(), report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        clock = Clock()
        trainer = InOrder(
            model=models.load_model(bench.model, torch.float32), args=args, train_dataset=Dataset.from_list(rows),
            processing_class=bench.tokenizer, callbacks=[clock],
        )  # fmt: skip
        trainer.train()
    return clock.end - clock.start


def deepspeed(bench: Bench) -> float:
    """Seconds of raylm's trainer on DeepSpeed, as the finetune stage runs it, with one worker."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    return ours(bench, engine="deepspeed")


ARMS: dict[str, Arm] = {
    "ours": ours,
    "bare": bare,
    "trl": trl,
    "packed": lambda bench: ours(bench, packing=True),
    "deepspeed": deepspeed,
}
ISOLATED: dict[str, dict[str, Any]] = {
    "none": {"enabled": False},
    "held": {"warmup": 1, "source": "static"},
    "renewed": {"warmup": 1, "refresh_every": 1},
}
"""Settings of isolation whose steps take turns."""


def take_turns(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of a step of every isolated arm, a row a round; a round takes the same batch in all of them."""
    bench = Bench(options)
    trainers = {name: _trainer(bench, isolation=settings) for name, settings in ISOLATED.items()}
    names, rows = list(trainers), []
    for step in range(WARM + options.rounds):
        row: dict[str, Any] = {"round": step - WARM}
        for turn in range(len(names)):
            name = names[(step + turn) % len(names)]
            start = time.monotonic()
            trainers[name].step(step)
            row[name] = time.monotonic() - start
        print(f"isolation, round {step - WARM}: {row}", file=sys.stderr, flush=True)
        rows += [row] if step >= WARM else []
    return rows


def _measure(name: str, options: argparse.Namespace) -> float:
    """Seconds of one arm, in a process of its own."""
    return ARMS[name](Bench(options))


def main(options: argparse.Namespace) -> None:
    """Measure, and write bench/results/train.json."""
    bench = Bench(options)
    names, rows = list(ARMS), []
    for repeat in range(options.repeats):
        turn = repeat * 2 % len(names)
        row: dict[str, Any] = {"repeat": repeat, "order": names[turn:] + names[:turn], "tokens": bench.tokens()}
        for name in row["order"]:
            with multiprocessing.get_context("spawn").Pool(1) as child:  # DeepSpeed cannot start twice in a process
                row[name] = child.apply(_measure, (name, options))
            print(f"{repeat} {name}: {bench.tokens() / row[name]:.1f} tokens/s", file=sys.stderr, flush=True)
        rows.append(row)
    with multiprocessing.get_context("spawn").Pool(1) as child:
        turns = child.apply(take_turns, (options,))
    figures, intervals = summarise(rows, turns)
    figures |= {"steps": bench.steps, "batch_size": bench.config.batch_size, "threads": bench.threads}
    figures |= {"mean_tokens": statistics.fmean(len(sample.ids) for sample in bench.samples)}
    figures |= {"mean_label_tokens": statistics.fmean(sample.label_tokens for sample in bench.samples)}
    figures |= {"epi_bytes_per_parameter": _bytes_per_parameter(bench), "model": options.model}
    print(results.write("bench/results/train", figures, rows + turns, intervals=intervals, seeds=[bench.config.seed]))


def summarise(
    rows: Sequence[dict[str, Any]], turns: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Ratios as geometric means over repeats with 95% intervals; overheads are shares of a step."""
    ratios = {
        "sft_vs_trl": [row["trl"] / row["ours"] for row in rows],
        "sft_vs_bare_loop": [row["bare"] / row["ours"] for row in rows],
        "deepspeed_vs_torch": [row["ours"] / row["deepspeed"] for row in rows],
        "packed_vs_padded": [row["ours"] / row["packed"] for row in rows],
        "packed_vs_trl": [row["trl"] / row["packed"] for row in rows],
        "epi_step_overhead": [row["held"] / row["none"] for row in turns],
        # 49 steps between two refreshes, and one that makes the mask anew.
        "epi_amortised_overhead_k50": [(49 * row["held"] + row["renewed"]) / 50 / row["none"] for row in turns],
        "refresh_in_steps": [1 + (row["renewed"] - row["held"]) / row["none"] for row in turns],
    }
    less = {name: float("overhead" in name or name == "refresh_in_steps") for name in ratios}
    means, bounds = results.geometric_means(ratios)
    figures = {name: mean - less[name] for name, mean in means.items()}
    intervals = {name: [bound - less[name] for bound in each] for name, each in bounds.items()}
    for name in ARMS:
        figures[f"{name}_tokens_per_second"] = statistics.fmean(row["tokens"] / row[name] for row in rows)
    return figures, intervals


def _bytes_per_parameter(bench: Bench) -> float:
    """What isolation keeps beside the optimizer's moments."""
    config = bench.configured(isolation={"warmup": 1, "refresh_every": 1})
    engine = TorchEngine(build_model(bench.model, config), config, bench.plan.steps)
    Trainer(config, engine, bench.samples, bench.plan, 0, ranks=(0, 1)).step(0)
    isolation = engine.optimizer.isolation
    assert isolation is not None
    found = isolation.bytes()
    return (found["importance"] + found["mask"]) / sum(param.numel() for param, _ in engine.held)


def _sums(count: int) -> list[dict[str, Any]]:
    """Chats that add up numbers one operation a line."""
    rows = []
    for number in range(count):
        terms = [(number * 7 + place * 13) % 89 + 1 for place in range(2 + number % 4)]
        lines, total = [], terms[0]
        for term in terms[1:]:
            lines.append(f"{total} + {term} = {total + term}")
            total += term
        asked = {"role": "user", "content": f"What is {' + '.join(map(str, terms))}?"}
        answer = {"role": "assistant", "content": "\n".join([*lines, f"Answer: {total}"])}
        rows.append({"id": str(number), "messages": [{"role": "system", "content": _SYSTEM}, asked, answer]})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--chains", default="", help="a synthesize artefact or file; default: written-out sums")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12, help="steps of each isolated arm")
    main(parser.parse_args())
