"""The Python in README runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_an_example_trains_with_a_mask_of_the_size_it_asks_for(tmp_path, number):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BLOCKS[number]]
    run = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 0, run.stderr
    density = float(run.stdout.strip().splitlines()[-1].split()[0])
    assert density == pytest.approx(0.05, abs=2e-3)


def test_both_ways_are_shown():
    assert len(BLOCKS) == 2
    assert "attach(optimizer)" in BLOCKS[0]
    assert "Trainer(" in BLOCKS[1]
