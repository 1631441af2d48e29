"""Which engine `auto` takes, and what is refused before anything is loaded."""

import asyncio
import importlib.util
import json

import pytest

from raylm.config import build
from raylm.errors import UserError
from raylm.evaluation.config import EvaluateConfig
from raylm.llm import engine, models
from raylm.llm.config import EngineConfig
from raylm.search.config import ExploreConfig

AUTO = EngineConfig(model="micro")


@pytest.fixture
def vllm_installed(monkeypatch):
    monkeypatch.setattr(engine, "vllm_hindrance", lambda: "")


def test_a_gpu_takes_vllm(vllm_installed):
    assert engine.choose(AUTO, cpus=1, gpus=1).kind == "vllm"


def test_a_gpu_without_vllm_takes_transformers_and_says_why(monkeypatch):
    monkeypatch.setattr(engine, "vllm_hindrance", lambda: "vllm is not installed")
    choice = engine.choose(AUTO, cpus=1, gpus=1)
    assert choice.kind == "transformers"
    assert "vllm is not installed" in choice.reason


def test_a_cpu_takes_transformers(vllm_installed):
    assert engine.choose(AUTO, cpus=2, gpus=0).kind == "transformers"


@pytest.mark.parametrize("kind", ["scripted", "transformers", "vllm"])
def test_a_named_engine_is_taken(vllm_installed, kind):
    assert engine.choose(EngineConfig(kind=kind, model="micro"), cpus=1, gpus=0).kind == kind


def test_vllm_that_is_not_installed_is_a_users_error(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else real(name))
    with pytest.raises(UserError, match=r"vllm is not installed.*engine\.kind=transformers"):
        engine.choose(EngineConfig(kind="vllm"), cpus=1, gpus=0)


def test_a_torchvision_for_another_torch_hinders_vllm(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "torchvision" else real(name))

    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)
    assert "pip uninstall torchvision" in engine.vllm_hindrance()


def test_a_context_beyond_the_models_positions_is_refused():
    where = models.resolve("micro")
    positions = json.loads((where.path / "config.json").read_text())["max_position_embeddings"]
    with pytest.raises(UserError, match=f"context={positions + 1} is more than the {positions} positions of micro"):
        asyncio.run(engine.build(EngineConfig(kind="scripted", model="micro", context=positions + 1)))


def test_a_cache_too_small_for_one_sequence_is_refused():
    config = EngineConfig(kind="transformers", model="micro", kv_cache_gib=1e-5)
    with pytest.raises(UserError, match=r"kv_cache_gib=1e-05 cannot hold one sequence.*it needs"):
        asyncio.run(engine.build(config))


def test_the_log_says_which_engine_and_why(capsys):
    built = asyncio.run(engine.build(EngineConfig(kind="scripted", model="micro")))
    assert built.name == "scripted"
    assert "engine: scripted for micro (asked for)" in capsys.readouterr().err


def test_a_request_log_wraps_the_engine(tmp_path):
    from raylm.llm.protocol import Engine, Sampling

    async def run():
        config = EngineConfig(kind="scripted", model="micro", request_log=str(tmp_path / "log" / "requests"))
        built = await engine.build(config)
        assert isinstance(built, Engine)
        await asyncio.gather(built.generate("4 + 3", Sampling()), built.generate("1 + 1", Sampling(seed=2)))
        return built.stats().requests

    assert asyncio.run(run()) == 2
    lines = [json.loads(line) for line in (tmp_path / "log" / "requests").read_text().splitlines()]
    assert {line["prompt"] for line in lines} == {"4 + 3", "1 + 1"}
    assert len({line["request"] for line in lines}) == 2


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (ExploreConfig, {"problems": [{"name": "chain_sum", "limit": 1}]}),
        (EvaluateConfig, {"suites": {"a": [{"name": "chain_sum", "limit": 1}]}}),
    ],
)
def test_an_engine_over_several_gpus_needs_an_actor_with_as_many(config, where):
    spread = {"engine": {"tensor_parallel": 4}}
    with pytest.raises(UserError, match=r"engine.tensor_parallel=4 needs compute.gpus=4, got 1"):
        build(config, {**where, **spread, "compute": {"gpus": 1}})
    assert build(config, {**where, **spread, "compute": {"gpus": 4}}).compute.gpus == 4
    assert build(config, {**where, "compute": {"gpus": 0.5, "accelerator_type": "H100"}}).compute.gpus == 0.5
