"""What was acknowledged is there after any death; what was not is whole or absent."""

import multiprocessing
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.errors import UserError
from raylm.serve.journal import Entry, Journal

IDS = st.sampled_from("abcdef")


def upsert(*pairs, encoder="e"):
    ids, texts = zip(*pairs, strict=True)
    vectors = np.array([[len(text), ord(id[0])] for id, text in pairs], np.float32)
    return Entry(ids, texts, encoder, vectors)


def state(entries):
    """Texts by id after some entries, deleted ones as None."""
    found = {}
    for entry in entries:
        for place, id in enumerate(entry.ids):
            found[id] = entry.texts[place] if entry.texts else None
    return found


def log(folder):
    return folder / (folder / "CURRENT").read_text()


def test_entries_come_back_as_they_were(tmp_path):
    journal = Journal(tmp_path)
    assert journal.read() == []
    first = upsert(("a", "ré\nd\u2028"), ("b", ""))
    journal.append([first, Entry(("a",))])
    one, two = journal.read()
    assert (one.ids, one.texts, one.encoder) == (first.ids, first.texts, "e")
    np.testing.assert_array_equal(one.vectors, first.vectors)
    assert (two.ids, two.texts) == (("a",), None)
    assert journal.read() == []
    assert len(Journal(tmp_path).read()) == 2


@settings(deadline=None, max_examples=20)
@given(cut=st.integers(0, 200), data=st.data())
def test_a_writer_killed_anywhere_leaves_what_was_acknowledged(cut, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder)
    journal.append([upsert(("a", "one"))])
    whole = log(folder).read_bytes()
    torn = upsert(("b", data.draw(st.text(max_size=20)))).line()
    log(folder).write_bytes(whole + torn[: min(cut, len(torn) - 1)])
    reader = Journal(folder)
    assert state(reader.read()) == {"a": "one"}
    Journal(folder).append([upsert(("c", "three"))])
    assert state(reader.read()) == {"c": "three"}
    assert state(Journal(folder).read()) == {"a": "one", "c": "three"}


@settings(deadline=None, max_examples=25)
@given(st.lists(st.one_of(st.tuples(IDS, st.text(max_size=3)), IDS), max_size=40), st.integers(1, 5))
def test_writing_anew_keeps_the_state_for_old_and_new_readers(operations, every):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        writer, reader = Journal(name), Journal(name)
        seen, known = {}, {}
        for place, operation in enumerate(operations):
            entry = upsert(operation) if isinstance(operation, tuple) else Entry((operation,))
            writer.append([entry])
            known |= state([entry])
            writer.read()
            writer.compact(least=2)
            if place % every == 0:
                seen |= state(reader.read())
                assert seen == known
        assert state(Journal(name).read()) == known
        assert len(list(Path(name).glob("log-*"))) == 1


def test_writing_anew_drops_what_was_replaced(tmp_path):
    journal = Journal(tmp_path)
    for number in range(50):
        journal.append([upsert(("a", str(number)))])
    journal.read()
    size = log(tmp_path).stat().st_size
    assert not journal.compact(least=100)
    assert journal.compact(least=10)
    assert log(tmp_path).stat().st_size < size / 20
    assert state(journal.read()) == {"a": "49"}


def test_a_damaged_line_is_named(tmp_path):
    journal = Journal(tmp_path)
    journal.append([upsert(("a", "one")), upsert(("b", "two"))])
    data = bytearray(log(tmp_path).read_bytes())
    data[30] ^= 1
    log(tmp_path).write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        Journal(tmp_path).read()


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Journal(tmp_path / "file" / "journal")


def _write(folder, who):
    journal = Journal(folder)
    for number in range(20):
        journal.append([upsert((f"{who}-{number}", "text"))])
        journal.read()
        journal.compact(least=5)


def test_writers_of_several_processes_do_not_lose_each_others_lines(tmp_path):
    shutil.rmtree(tmp_path)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, who)) for who in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(state(Journal(tmp_path).read())) == 60
