"""The model that trains: built, filled from a checkpoint, and exported."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from raylm.errors import UserError
from raylm.llm import models, quick
from raylm.train.config import FinetuneConfig
from raylm.train.data import Sample
from raylm.train.engines import Engine
from raylm.train.isolation import Segment
from raylm.train.isolation.fragments import Fragments


def build_model(path: str, config: FinetuneConfig, on: str = "") -> Any:
    """The model to train, with adapters where the config has them; `on` names another device than the worker's."""
    half = config.engine == "deepspeed" and config.precision == "bfloat16"
    model = models.load_model(path, torch.bfloat16 if half else torch.float32, config.trust_remote_code)
    if config.gpus_per_worker and not (config.engine == "deepspeed" and config.zero == 3):  # which moves parts of it
        model = model.to(on or "cuda")
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable()
    return _adapted(model, config)


def skeleton(path: str | Path, config: FinetuneConfig) -> Any:
    """The model of `build_model` without its weights, on the meta device: names and shapes, in a moment."""
    quick.without_sklearn()
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = config.trust_remote_code
    with torch.device("meta"):
        described = AutoConfig.from_pretrained(str(path), trust_remote_code=trust)
        return _adapted(AutoModelForCausalLM.from_config(described, trust_remote_code=trust), config)


def _adapted(model: Any, config: FinetuneConfig) -> Any:
    if config.lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        target_modules=list(config.lora.targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapters)


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


def export(
    engine: Engine,
    source: str,
    root: Path,
    config: FinetuneConfig,
    *,
    sample: Sample,
    chosen: dict[str, torch.Tensor] | None = None,
) -> float:
    """Write the tuned model as a Hugging Face directory `model`, reload it, and compare; all ranks together.

    Args:
        engine: whose weights are exported.
        source: directory of the model that it began with.
        root: where `model` is written.
        config: of the run.
        sample: on which logits are compared.
        chosen: weights to export instead of the engine's; they are then compared with a model filled with them.

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
    model.load_state_dict(chosen or weights, strict=False)
    if chosen:
        with torch.no_grad():
            trained = model.eval()(input_ids=ids.cpu()).logits.float()
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
