"""Training a classifier on Ray Train: two workers, killed, gone on with on one, and the same model as without."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raylm.classify.model import Tokens, load, probabilities
from raylm.storage import Store

PLACES, BEASTS = ("harbour", "station", "market", "museum"), ("otter", "falcon", "badger", "salmon")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [
        {"id": f"{label}-{word}-{n}", "text": f"{asked} {word} number {n}", "label": label}
        for label, words, asked in (("where", PLACES, "where is the"), ("what", BEASTS, "what eats the"))
        for word in words
        for n in range(6)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def train(run_verb):
    """Trains in this process, to the end."""

    def run(*arguments):
        code, printed = run_verb("train-classifier", *arguments)
        assert code == 0, printed

    return run


def test_a_killed_run_ends_as_one_that_was_not(texts, train, start_job, tmp_path):
    arguments = (f"train={texts}", "epochs=3", "batch_size=8", "checkpoint_every=2", "soft.kind=keyword", "lr=1e-4")
    train(*arguments, f"out={tmp_path}/whole")
    steps = tmp_path / "steps"
    killed = (*arguments, f"out={tmp_path}/killed", f"step_log={steps}")
    start_job("jobs.train_classifier", *killed, "workers=2").kill_at(steps, 7)
    train(*killed, "workers=1")
    logged = [json.loads(line)["step"] for line in steps.read_text().splitlines()]
    assert sorted(set(logged)) == list(range(1, max(logged) + 1))
    assert len(logged) - max(logged) <= 2  # checkpoint_every
    rows = [pq.read_table(tmp_path / name / "data/predictions.parquet").to_pylist() for name in ("whole", "killed")]
    assert [row["predicted"] for row in rows[0]] == [row["predicted"] for row in rows[1]]
    # Two workers drop out other units than one, so that the weights are alike and not the same.
    assert all(abs(a["confidence"] - b["confidence"]) < 0.2 for a, b in zip(*rows, strict=True))
    assert Store(f"{tmp_path}/whole").manifest().figures["accuracy"] == 1.0
    assert "Surest errors" in (tmp_path / "killed" / "report.html").read_text()


def test_what_is_saved_predicts_what_was_reported(texts, train, tmp_path):
    arguments = (f"train={texts}", "epochs=1", "batch_size=8", f"out={tmp_path}/out", "soft.mode=two_head")
    train(*arguments, "soft.kind=uniform")
    model, tokenizer = load(tmp_path / "out/model")
    rows = pq.read_table(tmp_path / "out/data/predictions.parquet").to_pylist()
    said = {json.loads(line)["id"]: json.loads(line)["text"] for line in Path(texts).read_text().splitlines()}
    found = probabilities(model, Tokens([said[row["id"]] for row in rows], tokenizer, model.max_length))
    np.testing.assert_allclose(found.max(1), [row["confidence"] for row in rows], atol=1e-5)
    assert [model.labels[place] for place in found.argmax(1)] == [row["predicted"] for row in rows]
