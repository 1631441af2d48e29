"""The reader of JSONL and Parquet: every row once, with its place, and damage named by line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raylm.errors import UserError
from raylm.rows import read_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(TEXT, TEXT, min_size=1), min_size=1), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_rows_come_back_as_they_were(tmp_path, rows, escaped, end):
    """Line separators of Unicode inside a text cut nothing, whether they are escaped or not."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes("".join(json.dumps(row, ensure_ascii=escaped) + end for row in rows).encode())
    found, digest = read_rows("train", str(path))
    assert [row for _, row in found] == rows
    assert [place for place, _ in found] == [f"{path}:{number}" for number in range(1, len(rows) + 1)]
    assert len(digest) == 16


def test_all_forms_hold_the_same_rows(tmp_path):
    rows = [{"text": "a\u2028b", "n": 1}, {"text": "c", "n": 2}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        found, _ = read_rows("train", str(tmp_path / name))
        assert [row for _, row in found] == rows
        assert found[1][0] == f"{tmp_path / name}:2"


def test_empty_lines_keep_the_count(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n  \n{"a": 2}\n')
    assert [place.rpartition(":")[2] for place, _ in read_rows("train", str(path))[0]] == ["1", "4"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "train=.*rows.jsonl: holds no rows"),
        (b'{"a": 1}\n{"a": ', "rows.jsonl:2: not valid JSON"),
        (b'{"a": 1}\n[1]\n', "rows.jsonl:2: a list, not an object"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "rows.jsonl:2: not UTF-8 .* at byte 7"),
    ],
)
def test_damage_is_named_by_line(tmp_path, data, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    with pytest.raises(UserError, match=says):
        read_rows("train", str(path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_a_file_that_is_cut_short_is_refused(tmp_path, name):
    rows = [{"text": "some text " * 20, "n": n} for n in range(50)]
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=f"train=.*{name}: not a"):
        read_rows("train", str(tmp_path / name))


def test_a_missing_file_says_what_is_wanted(tmp_path):
    with pytest.raises(UserError, match=r"train=.*none\.jsonl: no such file; give a JSONL or Parquet file of chats"):
        read_rows("train", str(tmp_path / "none.jsonl"), "chats")
