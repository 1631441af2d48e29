"""Documents for missing prerequisites: the nearest of a corpus, or written ones that hold the answer."""

import dataclasses
import json

import numpy as np
import pytest

from raylm.config import build
from raylm.errors import UserError
from raylm.ilp import documents, outcome
from raylm.ilp.config import DiagnoseConfig, ProbeConfig
from raylm.ilp.items import make

from .test_interventions import diagnosis, probed

WORDS = ("paris", "rome", "red", "green", "capital", "colour")


def items_of(*pairs):
    rows = [
        {"id": f"s{n}", "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for n, (q, a) in enumerate(pairs)
    ]
    return make(rows, ProbeConfig())


ITEMS = items_of(("which colour has paris", "red"), ("which colour has rome", "green"))


def encode(texts):
    """Counts of a few words, of length 1."""
    rows = np.array([[text.lower().count(word) + 1e-3 for word in WORDS] for text in texts], dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def config(tmp_path, **repair):
    return build(DiagnoseConfig, {"model": "m", "base": "b", "chains": "c", "repair": repair})


def no_model(*_):
    raise AssertionError("no model is asked where there is a corpus")


def corpus(tmp_path, *texts):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_the_nearest_documents_of_a_corpus_are_taken_once_each(tmp_path):
    """Both samples are near to the third document, which is then kept for the first alone."""
    texts = ("paris is red", "rome is green", "the colour of paris is red and the colour of rome is green", "capital")
    found, failed = documents.gather(
        ITEMS, config(tmp_path, corpus=corpus(tmp_path, *texts), documents_each=2), encode, no_model, ""
    )
    assert failed == 0
    assert {(row["id"], row["source"]) for row in found} == {
        ("s0", "corpus:1"), ("s0", "corpus:3"), ("s1", "corpus:2"),
    }  # fmt: skip
    assert {row["text"] for row in found} == set(texts[:3])


@pytest.mark.parametrize(("texts", "says"), [((" ",), "corpus.jsonl:1: no field 'text'"), ((), "holds no documents")])
def test_a_corpus_without_texts_is_refused(tmp_path, texts, says):
    with pytest.raises(UserError, match=says):
        documents.gather(ITEMS, config(tmp_path, corpus=corpus(tmp_path, *texts)), encode, no_model, "")


def test_written_documents_count_only_where_they_hold_the_answer(tmp_path):
    """Of three for each sample: one holds it, one does not, one is cut."""
    asked = []

    def ask(label, units, worker, arguments):
        asked.extend(units)
        assert arguments["path"] == "writer"
        texts = [(" Paris is Red. ", True), ("Paris is blue.", True), ("red", False)]
        return [
            {"id": "s0", "place": place, "response": text, "finished": whole}
            for place, (text, whole) in enumerate(texts, start=1)
        ]

    found, failed = documents.gather(ITEMS, config(tmp_path, documents_each=3), encode, ask, "writer")
    assert asked
    assert failed == 2
    assert found == [
        {"id": "s0", "text": "Paris is Red.", "source": "written:writer"},
        {"id": "s1", "text": "which colour has rome\ngreen", "source": "sample"},  # none was written for it
    ]


def test_without_corpus_and_writer_a_sample_is_its_own_document(tmp_path):
    found, _ = documents.gather(ITEMS, config(tmp_path), encode, no_model, "")
    assert [row["source"] for row in found] == ["sample", "sample"]
    assert documents.gather(ITEMS, config(tmp_path, documents_each=0), encode, no_model, "") == ([], 0)


def test_data_that_the_model_was_not_trained_on_is_doubted():
    answers = {f"s{n}": "red" for n in range(20)}
    found = diagnosis(answers, {}, [])
    assert not any("was the model trained on them" in text for text in outcome.doubts(found))
    for name in list(answers)[:11]:
        found.probed[name] = dataclasses.replace(probed(name), improved=False)
    assert any("only 45% of the samples" in text for text in outcome.doubts(found))


def test_few_samples_are_doubted():
    found = diagnosis({"a": "x", "b": "y", "c": "z"}, {}, [])
    assert any("3 samples are fewer" in text for text in outcome.doubts(found))
