"""Transformers is loaded without what an actor never needs, and what is loaded is what it would be otherwise."""

import json
import shutil
import subprocess
import sys

import pytest

from raylm.llm import models, quick

LOADING = """
import sys, torch
from raylm.llm import models
models.load_model(models.resolve("micro").path, torch.float32)
from transformers.generation import candidate_generator
from transformers.utils import is_sklearn_available
print("sklearn" in sys.modules, candidate_generator.is_sklearn_available(), is_sklearn_available())
"""
TEXT = "12 + 5 = 17,  so\n\nétape → 数学 😀 <|im_end|> Answer:17"


def test_a_model_comes_without_scikit_learn_and_transformers_is_told_the_truth_afterwards():
    shown = subprocess.run([sys.executable, "-c", LOADING], check=True, capture_output=True, text=True).stdout
    assert shown.split() == ["False", "False", "True"]


@pytest.mark.parametrize("name", ["micro", "smollm2-135m-instruct"])
def test_the_quick_tokenizer_is_the_one_that_auto_tokenizer_finds(name):
    from transformers import AutoTokenizer

    path = models.resolve(name).path
    fast, found = quick.tokenizer(path), AutoTokenizer.from_pretrained(str(path))
    assert type(fast) is type(found)
    assert fast.encode(TEXT) == found.encode(TEXT)
    assert fast.special_tokens_map == found.special_tokens_map
    assert fast.chat_template == found.chat_template
    assert fast.decode(fast.encode(TEXT)) == found.decode(found.encode(TEXT))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"model_type": "qwen2"}),
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}}),
    ],
)
def test_whatever_needs_a_class_of_its_own_is_left_to_auto_tokenizer(tmp_path, file, change):
    path = tmp_path / "model"
    shutil.copytree(models.resolve("micro").path, path)
    assert quick.tokenizer(path) is not None
    settings = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps({**settings, **change}))
    assert quick.tokenizer(path) is None
    assert quick.tokenizer(tmp_path / "none") is None
