"""How fast is the trainer, beside TRL's and a bare loop, and what does isolation cost?

    python -m jobs.bench.train [--model M] [--chains PATH] [--batch-size N] [--steps N] [--repeats N]
        [--turns N]

Every arm takes the same optimizer steps on the same tokenized chains in the same batches: full fine-tuning with AdamW
in fp32, one process, padding to the longest of a micro-batch (one arm packs), loss on the responses alone. Arms run one
after another in every repeat, each on a fresh copy of the model, in an order that rotates; ratios are of tokens per
second in the same repeat, so that what else the machine does hits all arms alike. The cost of isolation is measured
as `jobs.bench.isolation` does it. Without --chains, arithmetic problems with written-out solutions stand in for a
synthesized set.
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
from jobs.bench import isolation
from jobs.bench.trainers import WARM, Bench, options_of, trainer_of
from raylm.llm import models
from raylm.train.data import collate, deal

Arm = Callable[["Bench"], float]


def ours(bench: Bench, **changes: Any) -> float:
    """Seconds of raylm's trainer."""
    trainer = trainer_of(bench, **changes)
    start = 0.0
    for step in range(WARM + bench.steps):
        if step == WARM:
            start = time.monotonic()
        trainer.step(step)
    return time.monotonic() - start


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


def take_turns(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What isolation costs, a row a step."""
    return isolation.measure(Bench(options), options.steps, options.turns)


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
    figures |= {"epi_bytes_per_parameter": isolation.bytes_per_parameter(bench), "model": options.model}
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
    }
    figures, intervals = results.geometric_means(ratios)
    overheads, bounds = isolation.summarise(turns)
    figures, intervals = figures | overheads, intervals | bounds
    for name in ARMS:
        figures[f"{name}_tokens_per_second"] = statistics.fmean(row["tokens"] / row[name] for row in rows)
    return figures, intervals


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5, help="of the optimizer after a step, to see isolation's cost")
    main(options_of(parser).parse_args())
