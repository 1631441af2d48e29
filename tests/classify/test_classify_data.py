"""Labelled texts: what is refused, what is left out, what stress does."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.classify.config import ClassifierConfig, StressConfig
from raylm.classify.data import Texts, load, split, stress
from raylm.config import build
from raylm.errors import UserError


def file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ROWS = [{"text": f"{word} {n}", "label": word} for word in ("cat", "dog") for n in range(10)]


def config(**changes):
    return build(ClassifierConfig, changes)


def test_texts_of_dev_and_test_are_taken_out_of_train(tmp_path):
    train = file(tmp_path / "train.jsonl", ROWS)
    test = file(tmp_path / "test.jsonl", ROWS[:2])
    found = load(config(train=train, test=test))
    assert found.labels == ("cat", "dog")
    assert found.overlaps + len(found.train) + len(found.dev) == 20
    assert not {*found.dev.texts, *found.test.texts} & {*found.train.texts}


def test_compressed_and_parquet_files_are_read_alike(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = file(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    texts = [load(config(train=p)).train.texts for p in (plain, f"{plain}.gz", str(tmp_path / "a.parquet"))]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "a", "label": "x"}], "all texts have the label 'x'"),
        ([{"text": " ", "label": "x"}], ":1: text is ' '"),
        ([{"text": "a"}], ":1: label is None"),
        ([{"id": "1", "text": "a", "label": "x"}, {"id": 1, "text": "b", "label": "y"}], ":2: the id 1 is there"),
        ([], "holds no rows"),
        (["a"], ":1: a str, not an object"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused_by_line_and_field(tmp_path, rows, says):
    with pytest.raises(UserError, match=says):
        load(config(train=file(tmp_path / "bad.jsonl", rows)))


def test_a_label_that_training_has_not_seen_is_refused(tmp_path):
    train, dev = file(tmp_path / "t.jsonl", ROWS), file(tmp_path / "d.jsonl", [{"text": "z", "label": "cow"}])
    with pytest.raises(UserError, match="1 labels are not in train, such as 'cow'"):
        load(config(train=train, dev=dev))
    with pytest.raises(UserError, match="no such file"):
        load(config(train=str(tmp_path / "none.jsonl")))


def texts(counts):
    gold = np.repeat(np.arange(len(counts)), counts)
    return Texts(tuple(map(str, range(len(gold)))), tuple(f"t{n}" for n in range(len(gold))), gold)


@given(st.lists(st.integers(1, 20), min_size=2, max_size=5), st.floats(0.05, 0.9), st.integers(0, 9))
def test_a_split_keeps_every_text_once_and_every_label_in_train(counts, share, seed):
    most, held = split(texts(counts), share, seed)
    assert sorted([*most.ids, *held.ids], key=int) == [str(n) for n in range(sum(counts))]
    assert set(most.gold) == set(range(len(counts)))


@given(st.floats(1, 50), st.floats(0.1, 1), st.integers(0, 9))
def test_stress_makes_the_tail_it_is_asked_for(imbalance, keep, seed):
    found = stress(texts([100] * 5), StressConfig(imbalance=imbalance, keep=keep), 5, seed)
    sizes = np.bincount(found.gold, minlength=5)
    assert sizes.max() == round(100 * keep)
    assert sizes.min() == max(1, round(100 * keep / imbalance))
    smaller = stress(texts([100] * 5), StressConfig(imbalance=imbalance, keep=keep / 2), 5, seed)
    assert set(smaller.ids) <= set(found.ids)


def test_noise_changes_its_share_of_the_labels_and_no_text():
    before = texts([500, 500])
    after = stress(before, StressConfig(noise=0.2), 2, 0)
    assert after.texts == before.texts
    assert 0.15 < (after.gold != before.gold).mean() < 0.25
