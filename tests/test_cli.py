"""The command line: verbs, help, and errors as one line with an exit code."""

import os
import subprocess
import sys

import pytest

from raylm import cli
from raylm.errors import EngineDied


def _raylm(*args, **kwargs):
    command = [sys.executable, "-m", "raylm.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **kwargs})


def test_help_lists_the_verbs():
    done = _raylm("--help")
    assert done.returncode == 0
    for verb in cli.VERBS:
        assert verb in done.stdout


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_a_verb_explains_every_field(verb, capsys):
    assert cli.run_verb(verb, ["--help"]) == 0
    text = capsys.readouterr().out
    from raylm import config

    for key, _, _, meaning in config.describe(cli.VERBS[verb].config_class()):
        assert key in text
        assert meaning, f"{key} has no help text"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["explore", "serch.rounds=3"], ["unknown key serch", "did you mean search?"]),
        (["explore", "nothere.yaml"], ["nothere.yaml", "no such config file"]),
        (["explor"], ["explor", "explore"]),
        (["config", "show", "explor"], ["explor", "explore"]),
        (["pipeline", "explore.out=x"], ["explore.out is set by the pipeline"]),
    ],
)
def test_bad_input_is_one_line_and_code_2(args, words):
    done = _raylm(*args)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr


def test_config_show_prints_yaml_that_loads_to_the_same_hash(tmp_path):
    first = _raylm("config", "show", "explore", "problems=[{name: chain_sum, limit: 3}]", "search.rounds=2")
    file = tmp_path / "shown.yaml"
    file.write_text(first.stdout)
    assert _raylm("config", "show", "explore", str(file)).stdout == first.stdout
    assert "rounds: 2" in first.stdout


def test_a_dead_engine_and_an_interrupt_have_their_own_codes(monkeypatch, capsys):
    def die(self, resolved):
        raise EngineDied("out of memory")

    def interrupt(self, resolved):
        raise KeyboardInterrupt

    args = ["problems=[{name: chain_sum, limit: 3}]"]
    monkeypatch.setattr(cli.Verb, "run", die)
    assert cli.run_verb("explore", args) == cli.ENGINE_DIED
    assert "out of memory" in capsys.readouterr().err
    monkeypatch.setattr(cli.Verb, "run", interrupt)
    assert cli.run_verb("explore", args) == cli.INTERRUPTED


def test_a_bug_keeps_its_traceback(monkeypatch):
    def bug(self, resolved):
        raise ZeroDivisionError

    monkeypatch.setattr(cli.Verb, "run", bug)
    with pytest.raises(ZeroDivisionError):
        cli.run_verb("explore", ["problems=[{name: chain_sum, limit: 3}]"])
