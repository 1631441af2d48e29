"""The log of samples."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylm.errors import UserError
from raylm.ilp import log


def rows(name, *losses, right=(), first=1):
    return [
        {"step": first + n, "id": name, "loss": loss, "token_accuracy": float(n in right)}
        for n, loss in enumerate(losses)
    ]


def path_of(*losses, right=()):
    return log.of_rows(rows("a", *losses, right=right)).paths["a"]


def test_a_path_says_what_training_saw():
    path = path_of(2.0, 1.0, 0.0, right=(1, 2))
    assert (path.steps, path.looks_right) == ((1, 2, 3), 2)
    assert path.confidence == pytest.approx((0.1353 + 0.3679 + 1) / 3, abs=1e-3)
    assert path.falling == pytest.approx(1.0)
    assert path.variability > 0


def test_falling_has_the_sign_of_the_slope_and_needs_three_exposures():
    assert path_of(1.0, 1.1, 1.3).falling < 0
    assert path_of(1.0, 1.0, 1.0).falling == pytest.approx(0, abs=1e-12)
    assert path_of(2.0, 1.0).falling is None


def test_alternation_counts_turns():
    assert path_of(1.0, 2.0, 1.0, 2.0).alternation == 1.0
    assert path_of(3.0, 2.0, 1.0).alternation == 0.0


def test_parquet_and_lines_give_the_same_log(tmp_path):
    made = rows("a", 2.0, 1.0) + rows("b", 3.0)
    pq.write_table(pa.Table.from_pylist(made), tmp_path / "log.parquet")
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    first, second = (log.read(str(tmp_path / name))[0] for name in ("log.parquet", "log.jsonl"))
    assert first == second
    assert not first.truncated


def test_a_line_that_was_cut_off_is_said_and_the_rest_is_read(tmp_path):
    lines = [json.dumps(row) for row in rows("a", 2.0, 1.0)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:9])
    found, _ = log.read(str(tmp_path / "log.jsonl"))
    assert found.paths["a"].losses == (2.0, 1.0)
    assert found.truncated == "its last line, 3, is cut off"


def test_a_line_that_was_cut_within_a_character_is_one_that_was_cut_off(tmp_path):
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows("é", 2.0, 1.0)]
    half = lines[0][: lines[0].index("é".encode()) + 1]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([*lines, half]))
    found, _ = log.read(str(tmp_path / "log.jsonl"))
    assert found.paths["é"].losses == (2.0, 1.0)
    assert found.truncated == "its last line, 3, is cut off"


def test_a_log_that_ends_early_is_truncated():
    assert log.of_rows(rows("a", 1.0, 1.0), steps=9).truncated == "it ends at step 2 of 9"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.jsonl", None, "no such file"),
        ("bad.jsonl", '{"step": 1}\n{"step": 2}\n', "bad.jsonl:1: lacks id, loss, token_accuracy"),
        ("broken.jsonl", 'x\n{"step": 2}\n', "broken.jsonl:1: not valid JSON"),
        ("empty.jsonl", "", "holds no row"),
        ("bad.parquet", "PAR1", "damaged Parquet"),
    ],
)
def test_a_bad_log_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        log.read(str(tmp_path / name))
