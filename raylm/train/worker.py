"""What every Ray Train worker runs: load, resume, train, checkpoint, export."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from raylm.errors import UserError
from raylm.llm import models
from raylm.storage import Store
from raylm.train import checkpoint
from raylm.train.config import FinetuneConfig
from raylm.train.data import Plan, Sample, encode, read_chains
from raylm.train.engines import Engine, collect, make_engine, restore
from raylm.train.isolation import Segment, save_mask
from raylm.train.isolation.fragments import Fragments
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
    samples = encode(read_chains(config.chains)[0], tokenizer, config)
    plan = Plan(len(samples), config)
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


def build_model(path: str, config: FinetuneConfig, on: str = "") -> Any:
    """The model to train, with adapters where the config has them; `on` names another device than the worker's."""
    half = config.engine == "deepspeed" and config.precision == "bfloat16"
    model = models.load_model(path, torch.bfloat16 if half else torch.float32, config.trust_remote_code)
    if config.gpus_per_worker and not (config.engine == "deepspeed" and config.zero == 3):  # which moves parts of it
        model = model.to(on or "cuda")
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable()
    if config.lora is not None:
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            target_modules=list(config.lora.targets),
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, adapters)
    return model


def export(engine: Engine, source: str, root: Path, config: FinetuneConfig, sample: Sample) -> float:
    """Write the tuned model as a Hugging Face directory `model`, reload it, and compare; all ranks together.

    Returns:
        the largest difference of a logit between the trained and the reloaded model, on rank 0; 0 elsewhere.
    """
    weights = engine.weights()
    engine.model.eval()
    ids = torch.tensor([sample.ids], device=engine.model.device)
    with torch.no_grad():  # inference mode is not for partitioned weights
        trained = engine.model(input_ids=ids).logits.float().cpu()
    if not weights:
        return 0.0
    # On a model of its own: partitions cannot be saved, and adapters are merged without touching what trains.
    model = build_model(source, config, on="cpu")
    model.load_state_dict(weights, strict=False)
    if config.lora is not None:
        model = model.merge_and_unload()
    partial, final = root / "model.partial", root / "model"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    models.load_tokenizer(source, config.trust_remote_code).save_pretrained(partial)
    models.check(partial)
    with torch.inference_mode():
        again = models.load_model(partial, model.dtype, config.trust_remote_code).eval()
        difference = float((trained - again(input_ids=ids.cpu()).logits.float()).abs().max())
    # A merged adapter, another device and half precision round differently; another model differs by far more.
    allowed = 1e-3 if model.dtype == torch.float32 else 0.5
    if difference > allowed:
        raise RuntimeError(f"the exported model differs from the trained one by {difference} in a logit")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return difference


def load_fragments(model: Any, fragments: Fragments, source: Path) -> None:
    """Put a checkpoint's weights into the model; what does not train is not in it.

    Raises:
        UserError: the checkpoint is of another model.
    """
    wanted = {name: tuple(param.shape) for name, param in model.named_parameters() if param.requires_grad}
    if wanted != fragments.shapes:
        raise UserError(
            f"{source}: a checkpoint of another model than {model.config.name_or_path}; remove {source.parent} to "
            "train from the start"
        )
    for name, param in model.named_parameters():
        if name in wanted:
            values = fragments.assemble(Segment(name, 0, param.numel(), 0, wanted[name]), "value")
            assert values is not None
            param.data.copy_(values.view(param.shape))


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
