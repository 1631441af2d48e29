"""Collections: read as a stream, and everything that is wrong with them is named."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.errors import UserError
from raylm.retrieval.data import Collection, Document, chunks, whole

CORPUS = [
    {"_id": "a", "title": "Red", "text": "one two"},
    {"_id": "b", "title": "", "text": " "},
    {"_id": "c", "text": "three"},
    {"_id": "d", "title": "", "text": "three"},
]
QUERIES = [{"_id": "q1", "text": "which red"}, {"_id": "q2", "text": "three"}]
JUDGED = "query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tc\t0\nq2\tc\t1\n"


def written(folder, corpus=CORPUS, queries=QUERIES, packed=False, **judged):
    for name, rows in (("corpus", corpus), ("queries", queries)):
        data = "".join(json.dumps(row) + "\n" if isinstance(row, dict) else row + "\n" for row in rows).encode()
        (folder / f"{name}.jsonl{'.gz' if packed else ''}").write_bytes(gzip.compress(data) if packed else data)
    (folder / "qrels").mkdir(exist_ok=True)
    for name, text in ({"train": JUDGED} | judged).items():
        (folder / f"qrels/{name}.tsv").write_text(text)
    return str(folder)


@pytest.mark.parametrize("packed", [False, True])
def test_a_collection_is_read(tmp_path, packed):
    found = Collection(written(tmp_path, packed=packed, trec="q1 0 a 1\n"))
    assert list(found.documents()) == [Document("a", "Red one two"), Document("c", "three"), Document("d", "three")]
    assert next(document.text for document in Collection(str(tmp_path), titles=False).documents()) == "one two"
    assert found.queries() == {"q1": "which red", "q2": "three"}
    assert found.judgments("train") == {"q1": {"a": 2, "c": 0}, "q2": {"c": 1}}
    assert found.judgments("trec") == {"q1": {"a": 1}}
    census = found.census(["train", "trec"])
    assert (census.documents, census.empty, census.repeated_texts, census.judged) == (
        3, ("b",), 1, {"train": 3, "trec": 1},
    )  # fmt: skip
    assert found.texts(["c", "b", "nowhere"]) == {"c": "three"}
    assert found.digest(["train"]) != Collection(str(tmp_path), titles=False).digest(["train"])


def test_judgments_of_what_is_missing_are_listed_and_refused_unless_allowed(tmp_path):
    found = Collection(written(tmp_path, odd=JUDGED + "q1\tb\t1\nq1\tx\t1\nq9\ta\t1\n"))
    with pytest.raises(UserError, match=r"odd.tsv names 2 documents that are not there or have no text: b, x; add"):
        found.census(["odd"])
    census = found.census(["odd"], allow_missing=True)
    assert census.missing_documents == {"odd": ("b", "x")}
    assert census.missing_queries == {"odd": ("q9",)}
    assert census.judged == {"odd": 3}
    assert found.usable("odd") == found.judgments("train")
    only = Collection(written(tmp_path, none="q9\ta\t1\n"))
    with pytest.raises(UserError, match=r"no judgment of a query and a document that are there"):
        only.census(["none"], allow_missing=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": [*CORPUS, CORPUS[0]]}, r"corpus.jsonl: line 5: document id a is there twice"),
        ({"queries": [*QUERIES, QUERIES[0]]}, r"queries.jsonl: line 3: query id q1 is there twice"),
        ({"queries": [{"_id": "q", "text": " "}]}, r"line 1: query q has no text"),
        ({"corpus": ["{"]}, r"corpus.jsonl: line 1: not JSON"),
        ({"corpus": ["[]"]}, r"corpus.jsonl: line 1: a list, not an object"),
        ({"corpus": [{"_id": "a"}]}, r"line 1: text is None; it must be a text"),
        ({"corpus": [{"_id": "", "text": "a"}]}, r"line 1: _id is ''"),
        ({"corpus": [CORPUS[1]]}, r"holds no document with a text"),
        ({"train": "q1\ta\n"}, r"train.tsv: line 1: 2 columns"),
        ({"train": "q1\ta\thigh\n"}, r"line 1: score 'high' is not a whole number"),
        ({"train": "q1\ta\t1\nq1\ta\t2\n"}, r"line 2: query q1 and document a have two different scores"),
    ],
)
def test_malformed_files_name_their_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        Collection(written(tmp_path, **changes)).census(["train"])


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no corpus.jsonl or corpus.jsonl.gz"):
        Collection(str(tmp_path))
    found = Collection(written(tmp_path, packed=True))
    with pytest.raises(UserError, match=r"no judgments qrels/dev.tsv; there are: train"):
        found.judgments("dev")
    file = tmp_path / "corpus.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"corpus.jsonl.gz: cut short or damaged"):
        found.census(["train"])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["red", "one", "the"]), min_size=1, max_size=60), st.integers(5, 20), st.integers(0, 2))
def test_chunks_cover_the_text_and_are_read_whole(tiny, words, length, overlap):
    from raylm.retrieval.encoder import Encoder

    encoder = Encoder.load(tiny, max_length=length)
    pieces = chunks(Document("d#x", " ".join(words)), encoder.tokenizer, length, overlap)
    assert encoder.truncated([piece.text for piece in pieces]) == 0
    assert {whole(piece.id) for piece in pieces} == {"d#x"}
    told = [piece.text.split() for piece in pieces]
    assert told[0] + [word for piece in told[1:] for word in piece[overlap:]] == words
