"""Transformers without what none of our processes needs: every actor pays for its imports before it works.

Imported plainly, the auto classes take ten seconds of one core, of which six load libraries that serve a branch of
assisted generation (scikit-learn, and with it pandas and scipy.stats) and models that are cut over several devices.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WANTS_SKLEARN = "transformers.generation.candidate_generator"


def without_sklearn() -> None:
    """Import the module of assisted generation as where scikit-learn is not installed; call it before auto classes.

    Only that module keeps believing so: it then tunes no threshold of an assistant model, which we never use.
    """
    from transformers import utils

    if _WANTS_SKLEARN in sys.modules:
        return
    installed = utils.is_sklearn_available
    utils.is_sklearn_available = lambda: False
    try:
        __import__(_WANTS_SKLEARN)
    finally:
        utils.is_sklearn_available = installed


def tokenizer(path: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a Llama's directory whose files say all of it; None where AutoTokenizer must find its class."""
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
        settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError):
        return None
    plain = settings.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in settings
    if kind != "llama" or not plain or not (path / "tokenizer.json").is_file():
        return None
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(path))
