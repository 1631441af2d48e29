"""The bootstrap: what it installs again and what not, what it refuses, what it hands on."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "jobs" / "start.py"


@pytest.fixture
def start():
    """The script as a module of its own, so that patches do not outlive a test."""
    spec = importlib.util.spec_from_file_location("start_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(start, tmp_path, monkeypatch):
    """A checkout with small locks."""
    locks = tmp_path / "src" / "cluster" / "requirements"
    locks.mkdir(parents=True)
    for name in ("torch", "cpu", "dev", "bench"):
        (locks / f"{name}.txt").write_text(f"{name}==1\n")
    (tmp_path / "src" / "pyproject.toml").write_text('[project]\nname = "x"\n\n[tool.ruff]\nline-length = 1\n')
    monkeypatch.setattr(start, "ROOT", tmp_path / "src")
    monkeypatch.setattr(start, "LOCKS", locks)
    monkeypatch.setattr(start, "check_machine", lambda venv: None)
    return tmp_path / "src"


@pytest.fixture
def make(start, checkout, tmp_path, monkeypatch):
    """Installers whose commands are noted down; `--clear` empties the environment as venv does."""
    ran: list[str] = []
    failing: set[str] = set()

    def call(self, *command):
        words = " ".join(map(str, command))
        if "--clear" in command:
            shutil.rmtree(self.venv, ignore_errors=True)
            self.venv.mkdir()
        ran.append(words)
        if any(part in words for part in failing):
            raise start.Stop(words)

    monkeypatch.setattr(start.Installer, "call", call)

    def prepare(*groups, **options):
        ran.clear()
        installer = start.Installer(tmp_path / "env", list(groups), **options)
        try:
            installer.prepare()
        finally:
            if installer.lock:
                installer.lock.close()
        return list(ran)

    prepare.failing = failing
    return prepare


def test_first_run_installs_in_order_and_the_second_nothing(make):
    ran = make("dev")
    order = ["-m venv", "pip install --no-input uv==", "torch.txt", "uv pip install", "dev.txt", "-e "]
    positions = [next(i for i, words in enumerate(ran) if part in words) for part in order]
    assert positions == sorted(positions)
    assert make("dev") == []


def test_a_group_is_added_to_a_finished_environment(make):
    make()
    (added,) = make("dev")
    assert "dev.txt" in added
    assert make() == []


@pytest.mark.parametrize("lock", ["torch.txt", "cpu.txt"])
def test_a_changed_lock_is_installed_into_an_empty_environment(make, checkout, tmp_path, lock):
    make("dev")
    (tmp_path / "env" / "left-over").touch()
    (checkout / "cluster" / "requirements" / lock).write_text("other==2\n")
    ran = make("dev")
    assert "--clear" in ran[0]
    assert any("dev.txt" in words for words in ran)
    assert not (tmp_path / "env" / "left-over").exists()


def test_changed_development_tools_leave_the_rest_alone(make, checkout):
    make("dev")
    (checkout / "cluster" / "requirements" / "dev.txt").write_text("pytest==2\n")
    (only,) = make("dev")
    assert "dev.txt" in only


def test_of_the_project_file_only_what_is_installed_counts(make, checkout):
    make()
    project = checkout / "pyproject.toml"
    project.write_text(project.read_text().replace("line-length = 1", "line-length = 2"))
    assert make() == []
    project.write_text(project.read_text().replace('"x"', '"y"'))
    (only,) = make()
    assert "-e " in only


@pytest.mark.parametrize("step", ["torch.txt", "cpu.txt"])
def test_an_installation_that_stopped_half_way_is_done_again_from_the_start(start, make, step):
    make.failing.add(step)
    with pytest.raises(start.Stop):
        make()
    make.failing.clear()
    assert "--clear" in make()[0]
    assert make() == []


def test_a_step_after_the_packages_is_done_again_alone(start, make):
    make.failing.add("raylm.llm.models")
    with pytest.raises(start.Stop):
        make()
    make.failing.clear()
    assert len(make()) == 1


def test_a_damaged_stamp_means_nothing_is_installed(start, make, tmp_path):
    make()
    (tmp_path / "env" / start.STAMP).write_text('{"environment": ')
    assert "--clear" in make()[0]


def test_pip_takes_over_where_uv_fails(make):
    make.failing.add("uv pip")
    ran = make()
    tried = next(i for i, words in enumerate(ran) if words.startswith("uv pip"))
    assert ran[tried + 1].startswith("python -m pip install")
    assert ran[tried + 1].endswith(ran[tried].split("--reinstall ")[1])


def test_the_index_for_torch_reaches_torch_alone(make):
    ran = make(torch_index="some-index")
    assert ["torch.txt" in words for words in ran if "some-index" in words] == [True]


def test_an_environment_that_is_not_ours_is_left_alone(start, make, tmp_path):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "precious").touch()
    with pytest.raises(start.Stop, match="not made by this script"):
        make()
    assert (tmp_path / "env" / "precious").exists()


def test_a_finished_environment_is_kept_from_another_installation(start, make, tmp_path):
    make()
    installer = start.Installer(tmp_path / "env", [])
    installer.prepare()
    with (tmp_path / "env.lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    installer.lock.close()


def test_two_first_runs_install_once(checkout, tmp_path):
    code = f"""
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("start", {str(SCRIPT)!r})
start = importlib.util.module_from_spec(spec); spec.loader.exec_module(start)
start.ROOT = pathlib.Path({str(checkout)!r}); start.LOCKS = start.ROOT / "cluster/requirements"
start.check_machine = lambda venv: None
def call(self, *command):
    self.venv.mkdir(exist_ok=True)
    with open(self.venv / "calls", "a") as file: file.write("call\\n")
    time.sleep(0.05)
start.Installer.call = call
start.Installer(pathlib.Path({str(tmp_path / "env")!r}), []).prepare()
"""
    command = [sys.executable, "-c", code]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    output = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert sum("[1/" in text for text in output) == 1
    assert (tmp_path / "env" / "calls").read_text().count("call") == 6


def test_a_child_that_outlives_the_script_keeps_the_lock(start, checkout, tmp_path):
    installer = start.Installer(tmp_path / "env", [])
    ready, go = tmp_path / "ready", tmp_path / "go"
    installer.lock = (tmp_path / "env.lock").open("a")
    fcntl.flock(installer.lock, fcntl.LOCK_EX)
    wait = f"import os, time; open({str(ready)!r}, 'w')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)"
    installer.call(
        "sh", "-c", f'"$0" -c "$1" >/dev/null 2>&1 & while [ ! -e "{ready}" ]; do :; done', sys.executable, wait
    )
    installer.lock.close()
    with (tmp_path / "env.lock").open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        go.touch()
        fcntl.flock(other, fcntl.LOCK_EX)


def test_killed_during_the_packages_then_run_again(checkout, tmp_path, make):
    make()
    stamp = tmp_path / "env" / "raylm-stamp.json"
    done = json.loads(stamp.read_text())
    stamp.write_text(json.dumps({name: done[name] for name in ("environment", "torch")}))
    assert "--clear" in make()[0]


@pytest.mark.parametrize("version", [(3, 9), (3, 13), (2, 7), (4, 0)])
def test_an_unsupported_python_is_refused(start, tmp_path, version):
    with pytest.raises(start.Stop, match=rf"3\.10 to 3\.12 is needed, this is {version[0]}\.{version[1]}"):
        start.check_machine(tmp_path / "env", version)


def test_a_missing_compiler_is_refused(start, tmp_path, monkeypatch):
    monkeypatch.setattr(start.shutil, "which", lambda name: None)
    with pytest.raises(start.Stop, match=r"no C\+\+ compiler"):
        start.check_machine(tmp_path / "env", (3, 11))


def test_missing_headers_and_a_small_disk_are_refused(start, tmp_path, monkeypatch):
    monkeypatch.setattr(start.shutil, "which", lambda name: name)
    monkeypatch.setattr(start.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(start.Stop, match="headers"):
        start.check_machine(tmp_path / "env", (3, 11))
    (tmp_path / "Python.h").touch()
    start.check_machine(tmp_path / "env", (3, 11))
    monkeypatch.setattr(start, "DISK_GB", 10**9)
    with pytest.raises(start.Stop, match="--venv PATH"):
        start.check_machine(tmp_path / "env", (3, 11))


@pytest.mark.parametrize(
    ("output", "remedy"),
    [
        ("OSError: [Errno 28] No space left on device", "free some space"),
        ("fatal error: Python.h: No such file or directory", "python3-dev"),
        ("error: command 'g++' failed: No such file", "install g++"),
        ("The virtual environment was not created because ensurepip is not available.", "python3-venv"),
        ("ERROR: No matching distribution found for torch==2.13.0", "--torch-index"),
        ("NewConnectionError: Temporary failure in name resolution", "network"),
        ("something else", "see the log"),
    ],
)
def test_a_failure_names_its_remedy(start, checkout, tmp_path, output, remedy):
    installer = start.Installer(tmp_path / "env", [])
    with pytest.raises(start.Stop) as stop:
        installer.call(sys.executable, "-c", f"print({output!r}); raise SystemExit(3)")
    assert remedy in str(stop.value)
    assert output in str(stop.value)


def test_what_the_user_has_set_stays(start, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    environment = start.final_environment(tmp_path / "env", 2)
    assert environment["OMP_NUM_THREADS"] == "7"
    assert environment["HF_HUB_OFFLINE"] == "0"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["PATH"].startswith(f"{tmp_path / 'env' / 'bin'}{os.pathsep}")


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["quickstart", "seed=3"], ["pipeline", "jobs/configs/quickstart.yaml", "seed=3"]),
        (["run", "explore", "a.yaml", "--help"], ["explore", "a.yaml", "--help"]),
    ],
)
def test_arguments_go_on_to_raylm(start, tmp_path, monkeypatch, argv, command):
    became = []
    monkeypatch.setattr(start.Installer, "prepare", lambda self: None)
    monkeypatch.setattr(start.os, "execve", lambda path, words, environment: became.append((path, words[1:])))
    monkeypatch.chdir(tmp_path)
    start.main(["--venv", str(tmp_path / "env"), *argv])
    assert became == [(str(tmp_path / "env" / "bin" / "raylm"), command)]


@pytest.fixture
def run_test(start, checkout, tmp_path, monkeypatch, capfd):
    """Runs the verb `test` with stand-ins for the programs: its exit code, and what was printed."""
    monkeypatch.setattr(start.Installer, "prepare", lambda self: None)
    (tmp_path / "env" / "bin").mkdir(parents=True)

    def run(*arguments, two=False, **programs):
        monkeypatch.setattr(start, "has_room_for_two", lambda: two)
        for name in ("ruff", "mypy", "pytest"):
            program = tmp_path / "env" / "bin" / name
            program.write_text(f'#!/bin/sh\necho {name} "$@"\n{programs.get(name, "exit 0")}\n')
            program.chmod(0o755)
        return start.main(["--venv", str(tmp_path / "env"), "test", *arguments]), capfd.readouterr().out

    return run


def test_every_check_runs_after_one_has_failed(run_test):
    code, output = run_test("-k", "foo", ruff="exit 1", two=True)
    assert code == 1
    assert output.count("pytest -k foo\n") == 1
    assert "checks: ruff check . FAILED, ruff format --check . FAILED, mypy ok, pytest ok" in output


@pytest.mark.parametrize("half", [0, 1])
def test_all_tests_are_shared_by_two_processes_where_there_is_room(run_test, half):
    """Of the stand-ins for pytest the one that finds the folder made ends with `half`, and that counts as well."""
    code, output = run_test(two=True, pytest=f'mkdir "${{1#--share=}}" 2>&1 || exit {half}')
    assert code == half
    assert output.count("pytest --share=") == 2
    assert output.index("== pytest, the other half") < output.index("checks: ruff")
    assert output.splitlines()[-1].endswith(f"mypy ok, pytest {'FAILED' if half else 'ok'}")
    assert "the other half" not in run_test()[1]


def test_two_processes_with_one_folder_run_every_test_once(tmp_path):
    files = ["tests/test_seeds.py", "tests/test_tables.py", "tests/test_progress.py"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--share={tmp_path / 'files'}", "-vv", *files]
    both = [subprocess.Popen(command, cwd=SCRIPT.parent.parent, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [line for process in both for line in process.communicate(timeout=120)[0].splitlines()]
    assert [process.returncode for process in both] == [0, 0]
    passed = [line.split()[0] for line in lines if " PASSED" in line]
    assert len(passed) == len(set(passed)) > 3
    assert {name.partition("::")[0] for name in passed} == set(files)


def test_what_another_process_has_taken_leaves_nothing_standing(tmp_path):
    files = ["tests/llm/test_stops.py", "tests/llm/test_sampling.py", "tests/search/test_steps.py"]
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / str(SCRIPT.parent.parent / files[1]).replace("/", "-")).touch()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--share={folder}", "-vv", *files]
    done = subprocess.run(command, cwd=SCRIPT.parent.parent, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout
    assert "test_stops.py::" in done.stdout
    assert "test_steps.py::" in done.stdout
    assert "test_sampling.py::" not in done.stdout


def test_a_stop_is_one_message_and_code_two(start, tmp_path, monkeypatch, capsys):
    (tmp_path / "env").mkdir()
    assert start.main(["--venv", str(tmp_path / "env"), "setup"]) == 2
    assert "start.py: " in capsys.readouterr().err


def test_the_script_needs_the_standard_library_alone():
    code = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='imported')"
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
