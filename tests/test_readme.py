"""The Python in README runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def printed(number, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BLOCKS[number]]
    run = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip().splitlines()


@pytest.mark.parametrize("number", [0, 1])
def test_an_example_trains_with_a_mask_of_the_size_it_asks_for(tmp_path, number):
    density = float(printed(number, tmp_path)[-1].split()[0])
    assert density == pytest.approx(0.05, abs=2e-3)


def test_soft_labels_are_made_and_a_labels_words_are_named(tmp_path):
    lines = printed(2, tmp_path)
    assert lines[0].startswith("[[")
    assert "('loan', " in lines[-1]


def test_all_of_them_are_known_here():
    assert len(BLOCKS) == 3
    assert "attach(optimizer)" in BLOCKS[0]
    assert "Trainer(" in BLOCKS[1]
    assert "SoftLabelConfig(" in BLOCKS[2]
