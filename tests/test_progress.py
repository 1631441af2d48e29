"""Progress lines on a plain stream."""

import itertools
import time

import pytest

from raylm import progress


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.2, "59s"), (60, "1m00s"), (3725, "1h02m")])
def test_seconds_read_well(seconds, text):
    assert progress.format_seconds(seconds) == text


def test_a_line_tells_rate_eta_and_note_and_ignores_resumed_work(capsys, monkeypatch):
    clock = itertools.count(0.0, 5.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.Progress("explore", 100, "trees", done=40) as bar:
        for _ in range(4):
            bar.advance(note="loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "explore: 40 of 100 trees were done before"
    assert lines[-1].startswith("explore: 44/100 trees in ")
    assert "ETA" in lines[-1]
    assert "loss 0.5" in lines[-1]
    assert "trees/min" in lines[-1] or "trees/s" in lines[-1]


def test_a_failed_stage_prints_no_closing_line(capsys):
    with pytest.raises(RuntimeError), progress.Progress("explore", 2, "trees"):
        raise RuntimeError
    assert capsys.readouterr().err == ""


def test_a_log_shows_life_while_nothing_is_finished(capsys, monkeypatch):
    monkeypatch.setattr(progress, "BEAT", 0.0)
    with progress.Progress("explore", 2, "trees"):
        time.sleep(1.5)
    assert capsys.readouterr().err.splitlines()[0].startswith("explore: 0/2 trees in 1s")


def test_units_of_another_kind_have_a_rate_of_their_own(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with progress.Progress("train-reward", 420, "steps") as bar:
        for at, *said in (
            (60, 16, 480, "texts read"),
            (62, 32, 480, "texts read"),
            (100, 201, 420, "steps", "loss 0.7"),
            (101, 211, 420, "steps", "loss 0.6"),
        ):
            now[0] = float(at)
            bar.reach(*said)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "train-reward: 32/480 texts read in 1m02s  8.00 texts read/s  ETA 56s"
    assert lines[2] == "train-reward: 201/420 steps in 1m40s  loss 0.7"
    assert lines[3] == "train-reward: 211/420 steps in 1m41s  10.00 steps/s  ETA 21s  loss 0.6"
