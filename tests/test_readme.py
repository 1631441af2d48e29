"""The Python in README runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
MARKS = ("attach(optimizer)", "Trainer(model", "SoftLabelConfig(", "Encoder.load(", "Index.build(", "RewardModel.load(")
"""What is in one block and in no other; together they name all blocks."""


def printed(mark, folder):
    (block,) = (block for block in BLOCKS if mark in block)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", block]
    run = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip().splitlines()


@pytest.mark.parametrize("mark", MARKS[:2])
def test_an_example_trains_with_a_mask_of_the_size_it_asks_for(tmp_path, mark):
    density = float(printed(mark, tmp_path)[-1].split()[0])
    assert density == pytest.approx(0.05, abs=2e-3)


def test_soft_labels_are_made_and_a_labels_words_are_named(tmp_path):
    lines = printed("SoftLabelConfig(", tmp_path)
    assert lines[0].startswith("[[")
    assert "('loan', " in lines[-1]


def test_an_encoder_counts_what_it_cuts_and_is_saved(tmp_path):
    assert any(line.endswith(" 1") and len(line) == 18 for line in printed("Encoder.load(", tmp_path))
    assert (tmp_path / "runs" / "encoder" / "modules.json").is_file()


def test_an_index_forgets_what_is_deleted_and_names_what_it_did_not_have(tmp_path):
    lines = printed("Index.build(", tmp_path)
    assert "['x']" in lines[-2]
    assert lines[-1] == "3"


def test_a_reward_model_says_why(tmp_path, served_models):
    (tmp_path / "runs" / "reward").mkdir(parents=True)
    (tmp_path / "runs" / "reward" / "model").symlink_to(served_models / "first")
    lines = printed("RewardModel.load(", tmp_path)
    assert len(lines) == 2
    assert all("'quality'" in line and "'length'" in line for line in lines)


def test_all_of_them_are_known_here():
    assert [sum(mark in block for block in BLOCKS) for mark in MARKS] == [1] * len(BLOCKS)
