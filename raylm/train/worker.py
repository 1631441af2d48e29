"""What every Ray Train worker runs: load, resume, train, checkpoint, export."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from raylm.llm import models
from raylm.storage import Store
from raylm.train import checkpoint
from raylm.train.config import FinetuneConfig
from raylm.train.data import encode, read_all
from raylm.train.engines import Engine, collect, make_engine, restore
from raylm.train.isolation import save_mask
from raylm.train.isolation.fragments import Fragments
from raylm.train.model import build_model, export, load_fragments
from raylm.train.plan import Plan
from raylm.train.trainer import Trainer


def train_loop(args: dict[str, Any]) -> None:
    """Train from the newest complete checkpoint to the end, then export on rank 0.

    Args:
        args: `config` (plain data), `model` (directory), `root` (the stage's directory), `sink` (actor for progress).
    """
    import ray.train

    config, context = FinetuneConfig.model_validate(args["config"]), ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    torch.manual_seed(config.seed)
    tokenizer = models.load_tokenizer(args["model"], config.trust_remote_code)
    samples = encode(read_all(config)[0], tokenizer, config)
    plan = Plan([sample.task for sample in samples], config)
    saved = _saved(Path(args["root"]) / "train")
    model = build_model(args["model"], config)
    trainable = sum(param.numel() for param in model.parameters() if param.requires_grad)
    log: dict[str, Any] = {"steps": []}
    start = 0
    states = checkpoint.load(saved) if saved is not None else []
    if saved is not None:
        # The weights go in before the engine is made: ZeRO then partitions and casts them as it did at first.
        fragments = Fragments(fragment for state in states for fragment in state["fragments"])
        load_fragments(model, fragments, saved)
    engine = make_engine(model, config, world, plan.steps)
    if saved is not None:
        start, log = _restore(engine, states, rank)
        states.clear()
    trainer = Trainer(config, engine, samples, plan, tokenizer.pad_token_id or 0, ranks=(rank, world))
    clock = time.monotonic()
    trained = 0
    for step in range(start, plan.steps):
        row = trainer.step(step)
        log["steps"].append(row)
        trained += row["total_tokens"]
        if rank == 0 and config.step_log:
            with open(config.step_log, "a") as file:
                file.write(json.dumps({"step": step + 1, "pid": os.getpid()}) + "\n")
        if rank == 0:
            speed = trained / (time.monotonic() - clock)
            args["sink"].add.remote({"step": step + 1, "loss": row["loss"], "tokens_per_second": speed})
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < plan.steps:
            _checkpoint(engine, (rank, world), step + 1, log)
    seconds = time.monotonic() - clock
    difference = export(engine, args["model"], Path(args["root"]), config, samples[0])
    isolation = engine.optimizer.isolation
    if isolation is not None and isolation.holds:
        save_mask(isolation, Path(args["root"]) / "isolation" / "mask.safetensors")
    if rank == 0:
        log |= {
            "masks": isolation.log if isolation is not None else [],
            "tokens_per_second": trained / seconds if trained else 0.0,
            "step_seconds": seconds / max(1, plan.steps - start),
            "trainable_parameters": trainable,
            "padding_share": trainer.padding / max(1, trainer.padding + trained),
            "export_largest_logit_difference": difference,
        }
        Store(args["root"]).write_json("log.json", log)
    ray.train.report({"step": plan.steps})


def _saved(root: Path) -> Path | None:
    import ray.train

    newest = checkpoint.newest(root) if root.is_dir() else None
    if newest is not None:
        return newest
    registered = ray.train.get_checkpoint()
    return Path(registered.to_directory()) if registered else None


def _restore(engine: Engine, states: list[dict[str, Any]], rank: int) -> tuple[int, dict[str, Any]]:
    """Put the states of all ranks back; returns the steps done and the log."""
    own = states[rank % len(states)]
    restore(engine, Fragments(fragment for state in states for fragment in state["fragments"]), own["step"])
    if engine.optimizer.isolation is not None:
        engine.optimizer.isolation.load_state_dict([state["isolation"] for state in states])
    torch.set_rng_state(own["rng"])
    return own["step"], states[0]["log"]


def _checkpoint(engine: Engine, ranks: tuple[int, int], step: int, log: dict[str, Any]) -> None:
    """Report a checkpoint of all ranks to Ray Train, which stores it."""
    import ray.train

    rank, world = ranks
    isolation = engine.optimizer.isolation
    state = {
        "step": step,
        "fragments": collect(engine),
        "isolation": isolation.state_dict() if isolation is not None else None,
        "rng": torch.get_rng_state(),
        "log": log if rank == 0 else None,
    }
    with tempfile.TemporaryDirectory(prefix="raylm-checkpoint-", dir=os.environ.get("TMPDIR")) as folder:
        checkpoint.save(Path(folder), rank, world, state)
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))
