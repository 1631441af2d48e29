"""An index on disk: equal after a round trip, refused when it is damaged, whole after a killed save."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from raylm.errors import UserError
from raylm.retrieval.index import Index, Source
from raylm.retrieval.index_config import IndexSettings
from raylm.storage import Store

SOURCE = Source("tiny", "0123456789abcdef", "main")
QUERIES = ["word 7", "word 11 word 3", "nothing"]
ROOT = Path(__file__).parent.parent.parent


def unit(count, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def build(count=300, kind="flat", seed=0):
    names, texts = [f"d{n}" for n in range(count)], [f"word {n} word {n % 13}" for n in range(count)]
    return Index.build(names, texts, unit(count, seed), source=SOURCE, settings=IndexSettings(kind=kind))


def answers(index):
    return index.search(unit(5, seed=3), 10), index.search_words(QUERIES, 10)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_what_is_read_answers_as_what_was_written(tmp_path, kind):
    index = build(kind=kind).add(["d1", "new"], ["word 7", "fresh"], unit(2, 8)).delete(["d2"])[0]
    index.save(str(tmp_path))
    found = Index.open(str(tmp_path))
    assert answers(found) == answers(index)
    assert (found.source, found.facts, found.kind, len(found)) == (SOURCE, index.facts, kind, 300)
    assert found.text("d1") == "word 7"
    assert "d2" not in found
    assert sorted(found.add(["d2"], ["back"], unit(1)).ids) == sorted([*index.ids, "d2"])
    said = json.loads((tmp_path / "index.json").read_text())
    assert (said["count"], said["dimension"], said["metric"], said["encoder"]["hash"]) == (
        300,
        16,
        "cosine",
        SOURCE.hash,
    )


def test_an_index_without_documents_or_words_is_kept_too(tmp_path):
    index = Index.build(["a"], [""], unit(1), source=SOURCE)
    emptied, _ = index.delete(["a"])
    for number, version in enumerate((index, emptied, emptied.compacted())):
        version.save(str(tmp_path / str(number)))
        assert answers(Index.open(str(tmp_path / str(number)))) == answers(version)


def test_a_small_change_does_not_write_the_built_part_again(tmp_path):
    index = build()
    index.save(str(tmp_path))
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "files").iterdir()}
    for number in range(3):
        index = index.add([f"x{number}"], ["new"], unit(1, number))
        index.save(str(tmp_path))
    kept = {file for file in (tmp_path / "files").iterdir() if written.get(file) == file.stat().st_mtime_ns}
    assert {file.name.split("-", 1)[1] for file in kept} >= {"base.faiss", "base.parquet", "bm25-data.csc.index.npy"}
    assert len(list((tmp_path / "files").glob("*-tail.parquet"))) == 2, "the newest version's and the one before"
    assert len(Index.open(str(tmp_path))) == 303


@pytest.mark.parametrize("name", ["base.faiss", "base.parquet", "bm25-data.csc.index.npy", "tail.parquet"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: data[:-1] + bytes([data[-1] ^ 1])]
)
def test_a_file_that_is_cut_short_or_changed_is_refused_by_name(tmp_path, name, damage):
    build().save(str(tmp_path))
    (file,) = (tmp_path / "files").glob(f"*-{name}")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=f"{name}: its content is not what index.json says"):
        Index.open(str(tmp_path))
    file.unlink()
    with pytest.raises(UserError, match=f"{name}.*missing"):
        Index.open(str(tmp_path))


def test_what_is_no_index_is_refused(tmp_path):
    with pytest.raises(UserError, match="no index here"):
        Index.open(str(tmp_path))
    build(5).save(str(tmp_path))
    said = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**said, "format": 99}))
    with pytest.raises(UserError, match="index format 99"):
        Index.open(str(tmp_path))
    (tmp_path / "index.json").write_text(json.dumps(said)[:50])
    with pytest.raises(UserError, match="damaged JSON"):
        Index.open(str(tmp_path))


SAVER = """
import sys
from tests.retrieval.test_index_files import build
print("begins", flush=True)
for seed in range(1, 1000):
    build(200, seed=seed).save(sys.argv[1])
"""


def test_readers_beside_a_writer_and_after_its_death_get_a_whole_version(tmp_path):
    build(200).save(str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    job = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(tmp_path)], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert job.stdout.readline() == "begins\n"
    seen = set()
    deadline = time.monotonic() + 60
    while len(seen) < 4:
        assert time.monotonic() < deadline
        seen.add(Index.open(str(tmp_path)).base.stored["base.faiss"])
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert len(Index.open(str(tmp_path)).search(unit(1), 10)[0]) == 10


def test_a_save_that_stops_at_any_file_leaves_the_version_before(tmp_path, monkeypatch):
    old, new = build(50), build(60, seed=1)
    old.save(str(tmp_path / "old"))
    write, left = Store.write_bytes, [0]

    def stopping(store, name, data):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        write(store, name, data)

    monkeypatch.setattr(Store, "write_bytes", stopping)
    for stop in range(9):  # eight files of the built part, and index.json; nothing had changed since
        path = str(shutil.copytree(tmp_path / "old", tmp_path / str(stop)))
        left[0] = stop
        with pytest.raises(KeyboardInterrupt):
            new.save(path)
        assert answers(Index.open(path)) == answers(old)
    left[0] = 100
    new.save(path)
    assert answers(Index.open(path)) == answers(new)
    build(70).save(path)
    assert len(list(Path(path, "files").glob("*-base.faiss"))) == 2, "what broken saves left is cleared away"
