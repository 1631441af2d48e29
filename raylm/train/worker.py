"""What every Ray Train worker runs: load, resume, train, checkpoint, export."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, TypeAlias

import torch

from raylm.errors import UserError
from raylm.llm import models
from raylm.storage import Store
from raylm.train import checkpoint
from raylm.train.config import FinetuneConfig
from raylm.train.data import Plan, Sample, collate, deal, encode, read_chains
from raylm.train.loop import DeepSpeedEngine, TorchEngine, label_loss, learning_rate, make_engine

Engine: TypeAlias = "TorchEngine | DeepSpeedEngine"


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
    saved = _saved(Path(args["root"]) / "train", world)
    model = build_model(args["model"], config)
    log: dict[str, Any] = {"steps": [], "masks": []}
    start = 0
    if saved is not None:
        # The weights go in before the engine is made: ZeRO then partitions and casts them as it did at first.
        _load_weights(model, checkpoint.load(saved, 0)["weights"], saved)
    engine = make_engine(model, config, world)
    if saved is not None:
        start, log = _restore(engine, checkpoint.load(saved, rank))
    trainer = Trainer(config, engine, samples, plan, tokenizer.pad_token_id or 0, ranks=(rank, world))
    clock = time.monotonic()
    trained = 0
    for step in range(start, plan.steps):
        row = trainer.step(step)
        log["steps"].append(row)
        isolation = engine.optimizer.isolation
        if isolation is not None and isolation.due(step + 1):
            log["masks"].append(isolation.refresh(step + 1))
        trained += row["total_tokens"]
        if rank == 0 and config.step_log:
            with open(config.step_log, "a") as file:
                file.write(json.dumps({"step": step + 1, "pid": os.getpid()}) + "\n")
        if rank == 0:
            speed = trained / (time.monotonic() - clock)
            args["sink"].add.remote({"step": step + 1, "loss": row["loss"], "tokens_per_second": speed})
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < plan.steps:
            _checkpoint(engine, rank, step + 1, log)
    seconds = time.monotonic() - clock
    if rank == 0:
        log |= {
            "tokens_per_second": trained / seconds if trained else 0.0,
            "step_seconds": seconds / max(1, plan.steps - start),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "padding_share": trainer.padding / max(1, trainer.padding + trained),
        }
        log["export_largest_logit_difference"] = export(engine, args["model"], Path(args["root"]), config, samples[0])
        Store(args["root"]).write_json("log.json", log)
    ray.train.report({"step": plan.steps})


class Trainer:
    """Takes optimizer steps of a plan on this rank."""

    def __init__(
        self,
        config: FinetuneConfig,
        engine: Engine,
        samples: list[Sample],
        plan: Plan,
        padding_id: int,
        *,
        ranks: tuple[int, int],
    ) -> None:
        self.config, self.engine, self.samples, self.plan = config, engine, samples, plan
        self.padding_id = padding_id
        self.rank, self.world = ranks
        self.padding = 0
        engine.model.train()

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step; its log row.

        The loss is the mean over all label tokens of the global batch. Each rank adds its share, scaled by the number
        of ranks because gradients are averaged over them.

        Raises:
            FloatingPointError: loss or gradient is not finite; the message names the chains of the batch.
        """
        batch = self.plan.batch_at(step)
        labels = sum(self.samples[index].label_tokens for index in batch)
        rate = learning_rate(self.config, step, self.plan.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros(1, dtype=torch.float64)
        try:
            for micro in deal(batch, self.samples, self.rank, self.world, self.config.micro_batch):
                tensors = collate([self.samples[index] for index in micro], self.padding_id)
                self.padding += int((1 - tensors["mask"]).sum()) * self.world
                tensors = {name: tensor.to(self.engine.model.device) for name, tensor in tensors.items()}
                with self._precision():
                    loss = label_loss(self.engine.model, tensors)
                total += loss.detach().double().cpu()
                self.engine.backward(loss * (self.world / labels))
            self.engine.step()
        except FloatingPointError as error:
            named = ", ".join(self.samples[index].id for index in batch)
            raise FloatingPointError(f"step {step + 1}: {error}; the batch holds chains {named}") from error
        if self.world > 1:
            torch.distributed.all_reduce(total)
        return {
            "step": step + 1,
            "epoch": self.plan.epoch_at(step),
            "loss": float(total) / labels,
            "lr": rate,
            "grad_norm": self.engine.optimizer.grad_norm,
            "label_tokens": labels,
            "total_tokens": sum(len(self.samples[index].ids) for index in batch),
        }

    def _precision(self) -> Any:
        if self.config.engine == "torch" and self.config.precision == "bfloat16":
            return torch.autocast(self.engine.model.device.type, torch.bfloat16)
        return contextlib.nullcontext()


def build_model(path: str, config: FinetuneConfig) -> Any:
    """The model to train, with adapters where the config has them."""
    half = config.engine == "deepspeed" and config.precision == "bfloat16"
    model = models.load_model(path, torch.bfloat16 if half else torch.float32, config.trust_remote_code)
    if config.gpus_per_worker:
        model = model.to("cuda")
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
    """Write the tuned model as a Hugging Face directory `model`, reload it, and compare.

    Returns:
        the largest difference of a logit between the trained and the reloaded model.
    """
    model = engine.model
    if config.lora is not None:
        model = model.merge_and_unload()
    model.eval()
    partial, final = root / "model.partial", root / "model"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    models.load_tokenizer(source, config.trust_remote_code).save_pretrained(partial)
    models.check(partial)
    ids = torch.tensor([sample.ids], device=model.device)
    with torch.inference_mode():
        again = models.load_model(partial, model.dtype, config.trust_remote_code).to(model.device).eval()
        difference = float((model(input_ids=ids).logits - again(input_ids=ids).logits).abs().max())
    if difference > 1e-3:
        raise RuntimeError(f"the exported model differs from the trained one by {difference} in a logit")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return difference


def _saved(root: Path, world: int) -> Path | None:
    import ray.train

    newest = checkpoint.newest(root, world) if root.is_dir() else None
    if newest is not None:
        return newest
    registered = ray.train.get_checkpoint()
    return Path(registered.to_directory()) if registered else None


def _load_weights(model: Any, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Put a checkpoint's weights into the model; what does not train is not in it."""
    wanted = {name: param.shape for name, param in model.named_parameters() if param.requires_grad}
    if wanted != {name: weight.shape for name, weight in weights.items()}:
        raise UserError(
            f"{source}: a checkpoint of another model than {model.config.name_or_path}; remove {source.parent} to "
            "train from the start"
        )
    model.load_state_dict(weights, strict=False)


def _restore(engine: Engine, state: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Put a rank's state back; returns the steps done and the log."""
    for flat, saved in zip(engine.flat_parameters(), state["flat"], strict=True):
        if saved["value"] is not None:
            flat.data.copy_(saved["value"])
        engine.optimizer.state[flat] = saved["state"]
    if engine.optimizer.isolation is not None:
        engine.optimizer.isolation.load_state_dict(state["isolation"])
    torch.set_rng_state(state["rng"])
    return state["step"], state["log"]


def _checkpoint(engine: Engine, rank: int, step: int, log: dict[str, Any]) -> None:
    """Report a checkpoint of all ranks to Ray Train, which stores it."""
    import ray.train

    exact = next(engine.model.parameters()).dtype == torch.float32  # then the weights are the master copy
    optimizer = engine.optimizer
    state = {
        "step": step,
        "flat": [
            {"value": None if exact else flat.detach().clone(), "state": dict(optimizer.state[flat])}
            for flat in engine.flat_parameters()
        ],
        "isolation": optimizer.isolation.state_dict() if optimizer.isolation else None,
        "rng": torch.get_rng_state(),
        "log": log,
    }
    if rank == 0:
        named = engine.model.named_parameters()
        state["weights"] = {name: param.detach() for name, param in named if param.requires_grad}
    with tempfile.TemporaryDirectory(prefix="raylm-checkpoint-", dir=os.environ.get("TMPDIR")) as folder:
        checkpoint.save(Path(folder), rank, state)
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))
