"""Artefacts: atomic writes, claims, manifests and reuse."""

import os

import pyarrow as pa
import pytest

from raylm.config import Config, runtime
from raylm.errors import UserError
from raylm.storage import MANIFEST, StageRun, Store


class Job(Config):
    size: int = 1
    """Size."""
    out: str = runtime("")
    """Where."""


def _table(*values):
    return pa.table({"value": list(values)})


def _finish(out, size=1, rows=(1, 2, 3)):
    run = StageRun("job", Job(size=size), str(out), {"input": "abc"})
    count = run.write_rows(_table(value) for value in rows)
    return run.finish(count, timing={"seconds": 1.5}, tokens={"generated": 7})


def test_a_finished_artefact_is_read_back_and_reused(tmp_path):
    manifest = _finish(tmp_path / "a")
    store = Store(str(tmp_path / "a"))
    assert store.read_data().column("value").to_pylist() == [1, 2, 3]
    assert manifest.rows == 3
    assert manifest.tokens == {"generated": 7}
    again = StageRun("job", Job(), str(tmp_path / "a"), {"input": "abc"})
    assert again.finished == manifest


def test_equal_runs_write_equal_bytes(tmp_path):
    first, second = _finish(tmp_path / "a"), _finish(tmp_path / "b")
    assert first.digest() == second.digest()
    for name in (MANIFEST, "data/part-00000.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_config_or_input_is_refused_by_name(tmp_path):
    _finish(tmp_path / "a")
    with pytest.raises(UserError, match=r"config\.size: 1 -> 2"):
        StageRun("job", Job(size=2), str(tmp_path / "a"), {"input": "abc"})
    with pytest.raises(UserError, match=r"inputs\.input"):
        StageRun("job", Job(), str(tmp_path / "a"), {"input": "other"})


def test_an_unfinished_artefact_cannot_be_read(tmp_path):
    StageRun("job", Job(), str(tmp_path / "a"))
    with pytest.raises(UserError, match="no finished artefact"):
        Store(str(tmp_path / "a")).read_data()


def test_rows_split_into_shards_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr("raylm.storage.SHARD_ROWS", 2)
    manifest = _finish(tmp_path / "a", rows=range(5))
    assert sorted(manifest.outputs) == [f"data/part-{index:05d}.parquet" for index in range(3)]
    assert Store(str(tmp_path / "a")).read_data().column("value").to_pylist() == list(range(5))


def test_an_interrupted_write_leaves_the_old_content(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.write_bytes("x/file", b"old")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.write_bytes("x/file", b"new")
    assert store.read_bytes("x/file") == b"old"
    assert store.names("x") == ["file"]
    assert os.listdir(tmp_path / "x") == ["file"]


def test_memory_filesystem_works_like_a_local_one():
    _finish("memory://artefacts/a")
    assert Store("memory://artefacts/a").read_data().num_rows == 3


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "gs://bucket/x"])
def test_a_remote_path_without_its_package_says_so(url):
    with pytest.raises(UserError, match="install"):
        Store(url)


def test_an_unwritable_directory_is_refused(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match="cannot write here"):
        StageRun("job", Job(), str(blocker / "below"))


def test_names_cannot_leave_the_store(tmp_path):
    with pytest.raises(UserError, match="outside"):
        Store(str(tmp_path / "a")).read_bytes("../secret")


def test_damaged_json_names_the_file(tmp_path):
    store = Store(str(tmp_path))
    store.write_bytes("manifest.json", b'{"stage": ')
    with pytest.raises(UserError, match=r"manifest\.json"):
        store.manifest()


@pytest.mark.parametrize(
    ("path", "folder", "name"),
    [("a/b.jsonl", "a", "b.jsonl"), ("b.jsonl", "", "b.jsonl"), ("/b.jsonl", "/", "b.jsonl")],
)
def test_a_file_lies_in_a_store(path, folder, name):
    """At the root of the disk too."""
    store, found = Store.of_file(path)
    assert found == name
    assert store.path(found) == os.path.abspath(os.path.join(folder, name))
