"""A text encoder: token vectors pooled into one vector of length 1, kept as a sentence-transformers directory.

The directory holds modules.json (Transformer, Pooling, a Dense where there is an adapter or a Matryoshka dimension,
Normalize), prompts in config_sentence_transformers.json, and safetensors, so that sentence-transformers
loads it by itself and gives the same vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from raylm.errors import UserError
from raylm.llm import models, quick
from raylm.llm.tokens import Tokens

Kind = Literal["query", "document"]
DEFAULT = "all-minilm-l6-v2"
_MODULES = "sentence_transformers.models."  # the names that every version of sentence-transformers reads
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


@dataclass(frozen=True)
class Settings:
    """What decides a text's vector beside the weights."""

    pooling: Literal["mean", "cls"] = "mean"
    """How token vectors become one: the mean of all, or the first."""
    query_prefix: str = ""
    """Text before every query."""
    document_prefix: str = ""
    """Text before every document."""
    max_length: int = 256
    """Tokens of a text that are read; longer texts are cut, and `Encoder.truncated` counts them."""
    dimension: int | None = None
    """Matryoshka: only the first coordinates are kept, before the vector is put to length 1; None keeps all."""


class Encoder(nn.Module):
    """A Hugging Face encoder whose pooled vectors have length 1."""

    def __init__(self, model: Any, tokenizer: Any, settings: Settings = Settings()) -> None:
        """Wrap a transformers model and its tokenizer.

        Raises:
            UserError: the settings ask for more coordinates or tokens than the model has.
        """
        super().__init__()
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        width, most = model.config.hidden_size, getattr(model.config, "max_position_embeddings", None)
        if settings.dimension is not None and not 1 <= settings.dimension <= width:
            raise UserError(f"dimension={settings.dimension}: this encoder's vectors have {width} coordinates")
        if settings.max_length < 3 or (most is not None and settings.max_length > most):
            raise UserError(f"max_length={settings.max_length}: this encoder reads 3 to {most} tokens")
        if getattr(model, "pooler", None) is not None:
            model.pooler.requires_grad_(False)  # no loss reaches it
        self.adapter: nn.Linear | None = None
        """A linear map of pooled vectors, before they are cut to `dimension` and put to length 1."""
        self._pooled: dict[bytes, torch.Tensor] | None = None

    def adapt(self) -> None:
        """Put an adapter on, the identity at first, and freeze the model; its pooled vectors are kept in memory."""
        width = int(self.model.config.hidden_size)
        if self.adapter is None:
            self.adapter = nn.Linear(width, width, bias=False).to(self.device)
            nn.init.eye_(self.adapter.weight)
        self.model.requires_grad_(False)
        self._pooled = {} if self._pooled is None else self._pooled

    @classmethod
    def load(
        cls, path_or_name: str = DEFAULT, revision: str | None = None, device: str = "cpu", **changes: Any
    ) -> Encoder:
        """An encoder from a directory (plain Hugging Face or sentence-transformers), a known name, or the hub.

        Args:
            path_or_name: as `raylm.llm.models.resolve_encoder` takes it.
            revision: commit of a hub model.
            device: where it runs.
            changes: fields of `Settings` that differ from what the directory says.

        Raises:
            UserError: it is nowhere to be had, or has modules or a pooling that this class lacks.
        """
        quick.without_sklearn()
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # one bar a model would drown the job's own progress
        path = models.resolve_encoder(path_or_name, revision).path
        tokenizer = models.load_tokenizer(path)
        model = AutoModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
        settings = _settings_of(path, tokenizer, model.config)
        given = {name: value for name, value in changes.items() if value is not None}
        found = cls(model, tokenizer, replace(settings, **given))
        dense = path / "2_Dense/model.safetensors"
        if dense.is_file():
            weight = load_file(dense)["linear.weight"]
            if not weight.equal(torch.eye(*weight.shape)):
                found.adapter = nn.Linear(weight.shape[1], weight.shape[1], bias=False)
                full = torch.zeros(weight.shape[1], weight.shape[1])
                full[: len(weight)] = weight
                found.adapter.weight.data.copy_(full)
        return found.to(device).eval()

    @property
    def dimension(self) -> int:
        """Coordinates of a vector."""
        return self.settings.dimension or int(self.model.config.hidden_size)

    @property
    def max_length(self) -> int:
        """Tokens of a text that are read."""
        return self.settings.max_length

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def hash(self) -> str:
        """Sixteen hex digits over everything that decides vectors: weights, vocabulary, settings.

        An index keeps it and takes vectors of no other encoder.
        """
        digest = hashlib.sha256(json.dumps(asdict(self.settings), sort_keys=True).encode())
        digest.update(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        weights = {**self.model.state_dict(), **({"adapter": self.adapter.weight} if self.adapter else {})}
        for name, value in sorted(weights.items()):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def tokens(self, texts: Sequence[str], kind: Kind = "document") -> Tokens:
        """Texts with their prefix as ids, cut to max_length."""
        prefix = self.settings.query_prefix if kind == "query" else self.settings.document_prefix
        return Tokens([prefix + text for text in texts] if prefix else texts, self.tokenizer, self.max_length)

    def truncated(self, texts: Sequence[str], kind: Kind = "document") -> int:
        """How many texts have more tokens than are read."""
        return self.tokens(texts, kind).overlong

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Contextual token vectors, [batch, tokens, hidden], from ids and mask [batch, tokens]."""
        states: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    def pool(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pooled vectors [batch, hidden] of any length from token vectors [batch, tokens, hidden]."""
        if self.settings.pooling == "cls":
            return states[:, 0]
        weights = mask[..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp_min(1.0)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Unit vectors of a batch of texts, [batch, dimension], with gradients; ids and mask are [batch, tokens]."""
        pooled = self.pool(self.states(ids, mask), mask) if self._pooled is None else self._remembered(ids, mask)
        if self.adapter is not None:
            pooled = self.adapter(pooled)
        return F.normalize(pooled[:, : self.dimension].float(), dim=-1)

    @torch.no_grad()
    def _remembered(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pooled vectors of a frozen model, made once a text and without dropout."""
        assert self._pooled is not None
        lengths = mask.sum(1).tolist()
        keys = [row[:length].tobytes() for row, length in zip(ids.cpu().numpy(), lengths, strict=True)]
        new = [number for number, key in enumerate(keys) if key not in self._pooled]
        if new:
            training = self.model.training
            self.model.eval()
            for number, row in zip(new, self.pool(self.states(ids[new], mask[new]), mask[new]), strict=True):
                self._pooled[keys[number]] = row.clone()
            self.model.train(training)
        return torch.stack([self._pooled[key] for key in keys])

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], kind: Kind = "document", batch_size: int = 64) -> np.ndarray:
        """Vectors of length 1, [texts, dimension] float32, in the order of the texts.

        Batches hold texts of like lengths; a text's vector depends on the text alone, up to rounding.

        Raises:
            UserError: the encoder gives a vector that is not finite.
        """
        training, device = self.training, self.device
        self.eval()
        tokens = self.tokens(texts, kind)
        found = np.empty((len(tokens), self.dimension), np.float32)
        for places in tokens.by_length(batch_size):
            ids, mask = tokens.batch(places)
            found[places] = self(ids.to(device), mask.to(device)).cpu().numpy()
        self.train(training)
        broken = np.flatnonzero(~np.isfinite(found).all(1))
        if len(broken):
            raise UserError(
                f"the encoder gives {len(broken)} of {len(found)} texts a vector that is not finite, first "
                f"{texts[broken[0]][:60]!r}; its weights are damaged or its training diverged"
            )
        return found

    def save(self, directory: str | Path) -> None:
        """Write a sentence-transformers directory that `load` and sentence-transformers read."""
        folder, width = Path(directory), int(self.model.config.hidden_size)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        parts = [("Transformer", ""), ("Pooling", "1_Pooling")]
        modes = {f"pooling_mode_{name}": False for name in ("max_tokens", "mean_sqrt_len_tokens")}
        modes |= {
            f"pooling_mode_{name}_token{s}": self.settings.pooling == name for name, s in (("cls", ""), ("mean", "s"))
        }
        _write(folder / "1_Pooling/config.json", {"word_embedding_dimension": width, **modes})
        if self.dimension < width or self.adapter is not None:
            parts.append(("Dense", "2_Dense"))
            identity = "torch.nn.modules.linear.Identity"
            sizes = {"in_features": width, "out_features": self.dimension, "bias": False}
            _write(folder / "2_Dense/config.json", {**sizes, "activation_function": identity})
            weight = torch.eye(width) if self.adapter is None else self.adapter.weight.detach().cpu()
            kept = {"linear.weight": weight[: self.dimension].clone()}
            save_file(kept, folder / "2_Dense/model.safetensors")
        parts.append(("Normalize", f"{len(parts)}_Normalize"))
        names = {f"module_{side}_name": "sentence_embedding" for side in ("input", "output")}
        _write(folder / parts[-1][1] / "config.json", names)
        rows = [
            {"idx": n, "name": str(n), "path": path, "type": _MODULES + name} for n, (name, path) in enumerate(parts)
        ]
        _write(folder / "modules.json", rows)
        _write(folder / "sentence_bert_config.json", {"max_seq_length": self.max_length, "do_lower_case": False})
        prompts = {"query": self.settings.query_prefix, "document": self.settings.document_prefix}
        said = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
        _write(folder / "config_sentence_transformers.json", said)


def _write(file: Path, value: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _settings_of(path: Path, tokenizer: Any, config: Any) -> Settings:
    """What a directory says; a plain Hugging Face one gets mean pooling and its tokenizer's length."""
    bounds = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 512]
    said = (
        models.read_json(path / "sentence_bert_config.json") if (path / "sentence_bert_config.json").is_file() else {}
    )
    if said.get("max_seq_length"):
        bounds.append(said["max_seq_length"])
    settings = Settings(max_length=int(min(bounds)))
    if not (path / "modules.json").is_file():
        return settings
    file = path / "config_sentence_transformers.json"
    prompts = models.read_json(file).get("prompts", {}) if file.is_file() else {}
    document = next((prompts[name] for name in _DOCUMENT_PROMPTS if prompts.get(name)), "")
    settings = replace(settings, query_prefix=prompts.get("query", ""), document_prefix=document)
    for module in json.loads((path / "modules.json").read_text(encoding="utf-8")):
        name, folder = module["type"].rpartition(".")[2], path / module["path"]
        if name == "Pooling":
            settings = replace(settings, pooling=_pooling(folder))
        elif name == "Dense":
            settings = replace(settings, dimension=_coordinates(folder, config.hidden_size))
        elif name not in ("Transformer", "Normalize"):
            raise UserError(f"{path}: module {name} in modules.json; encoders here are Transformer, Pooling, Normalize")
    return settings


def _pooling(folder: Path) -> Literal["mean", "cls"]:
    said = models.read_json(folder / "config.json")
    modes = {"mean": said.get("pooling_mode_mean_tokens"), "cls": said.get("pooling_mode_cls_token")}
    on = [key for key, value in said.items() if key.startswith("pooling_mode_") and value]
    mode = said.get("pooling_mode") or next((name for name, value in modes.items() if value and len(on) == 1), None)
    if mode not in ("mean", "cls") or said.get("include_prompt") is False:
        raise UserError(f"{folder}: pooling {mode or on}; encoders here pool by mean or cls, prompts included")
    return "mean" if mode == "mean" else "cls"


def _coordinates(folder: Path, width: int) -> int | None:
    """How many coordinates a Dense module gives; None where it keeps them all."""
    said = models.read_json(folder / "config.json")
    if folder.name != "2_Dense" or said.get("bias") or "Identity" not in said.get("activation_function", ""):
        raise UserError(f"{folder}: a Dense layer with a bias or an activation; encoders here have linear maps alone")
    return None if said["out_features"] == width else int(said["out_features"])
