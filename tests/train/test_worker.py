"""What a training worker does besides stepping."""

import errno
import itertools
import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from pyarrow import fs

from raylm.config import build
from raylm.errors import UserError
from raylm.llm import models
from raylm.train import checkpoint
from raylm.train.config import FinetuneConfig
from raylm.train.isolation.fragments import Fragments
from raylm.train.model import build_model, load_fragments


def _fragments(named):
    return Fragments(
        {"name": name, "shape": tuple(value.shape), "offset": 0, "value": value.detach().reshape(-1).clone()}
        for name, value in named
    )


def test_a_checkpoint_of_another_model_is_refused():
    path, place = str(models.resolve("micro").path), Path("runs/ft/train/checkpoint_1")
    whole = build_model(path, FinetuneConfig())
    adapters = build_model(path, build(FinetuneConfig, {"lora": {"rank": 4}}))
    saved = {name: param + 1 for name, param in whole.named_parameters()}
    name = next(iter(saved))
    load_fragments(whole, _fragments(saved.items()), place)
    assert all(torch.equal(param, saved[name]) for name, param in whole.named_parameters())
    for other in ({**saved, name: torch.zeros(3)}, {**saved, "more": torch.zeros(1)}, {name: saved[name]}):
        with pytest.raises(UserError, match=r"checkpoint_1: a checkpoint of another model .*remove runs/ft/train"):
            load_fragments(whole, _fragments(other.items()), place)
    with pytest.raises(UserError, match="checkpoint of another model"):
        load_fragments(adapters, _fragments(saved.items()), place)


def test_a_full_disk_says_so_and_leaves_the_checkpoint_before(tmp_path):
    for step in (1, 2):
        (tmp_path / f"checkpoint_{step}").mkdir()
    checkpoint.save(tmp_path / "checkpoint_1", 0, 1, {"step": 1})
    (tmp_path / "checkpoint_2" / "rank-0.pt").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"rank-0.pt: no space left for the checkpoint of step 2; free some"):
        checkpoint.save(tmp_path / "checkpoint_2", 0, 1, {"step": 2, "values": torch.zeros(1_000_000)})
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoint_1"


def test_a_disk_that_is_full_where_checkpoints_go_says_so_too(tmp_path):
    """By the copy that Ray Train makes."""
    prepared, stored = tmp_path / "prepared", tmp_path / "stored"
    for folder in (prepared, stored):
        folder.mkdir()
    checkpoint.save(prepared, 0, 1, {"step": 2, "values": torch.zeros(1_000_000)})
    (stored / "rank-0.pt").symlink_to("/dev/full")
    with (
        pytest.raises(UserError, match="stored: no space left for the checkpoint of step 2"),
        checkpoint.room(stored, 2),
    ):
        fs.copy_files(str(prepared), str(stored), fs.LocalFileSystem(), fs.LocalFileSystem())
    assert checkpoint.step_of(stored) == -1
    with pytest.raises(PermissionError), checkpoint.room(stored, 2):
        raise PermissionError(errno.EACCES, "not this")


def _save_for_ever(root):
    for step in itertools.count(1):
        (root / f"checkpoint_{step}").mkdir()
        state = {"step": step, "values": torch.full((500_000,), float(step))}
        checkpoint.save(root / f"checkpoint_{step}", 0, 1, state)


@pytest.mark.parametrize("turn", range(6))
def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path, turn):
    torch.set_num_threads(1)
    process = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=(tmp_path,))
    process.start()
    while checkpoint.newest(tmp_path) is None:
        time.sleep(0.001)
    time.sleep(0.003 * turn)
    process.kill()
    process.join()
    (state,) = checkpoint.load(checkpoint.newest(tmp_path))
    assert (state["values"] == state["step"]).all()
    assert state["step"] >= len(list(tmp_path.glob("checkpoint_*"))) - 1


def test_only_whole_checkpoints_count(tmp_path):
    for step in (1, 2, 3):
        folder = tmp_path / f"checkpoint_{step}"
        folder.mkdir()
        for rank in range(2):
            checkpoint.save(folder, rank, 2, {"step": step, "values": torch.arange(100) + rank})
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoint_3"
    (tmp_path / "checkpoint_3" / "rank-1.pt").write_bytes(b"cut short")
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoint_2"
    (tmp_path / "checkpoint_2" / "rank-1.json").unlink()
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoint_1"
    states = checkpoint.load(tmp_path / "checkpoint_1")
    assert [int(state["values"][0]) for state in states] == [0, 1]
    (tmp_path / "checkpoint_1" / "rank-0.json").write_text("{")
    assert checkpoint.newest(tmp_path) is None
