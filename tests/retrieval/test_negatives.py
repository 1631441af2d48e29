"""Hard negatives: what is relevant, a twin of it, or doubtful to a teacher never comes through."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.retrieval.corpus import Corpus, Queries, pairs
from raylm.retrieval.data import Document
from raylm.retrieval.encoder import Encoder
from raylm.retrieval.negatives import Pools, Remembered, Rule, by_encoder, judge, judged, nearest

TEXTS = ["red one", "red two", "blue one", "red one", "green"]
CORPUS = Corpus.of(Document(f"d{n}", text) for n, text in enumerate(TEXTS))
ASKED = Queries(("q0", "q1"), ("red one?", "green?"), ({0: 2, 1: 1}, {4: 2}), relevant_from=2)
FOUND = np.array([[0, 3, 1, 2, -1], [4, 2, 1, 0, 3]]), np.arange(10, 0, -1, dtype=np.float32).reshape(2, 5)


def kept(table):
    rows = table.filter(table["kept"]).to_pylist()
    return [(row["query"], row["document"]) for row in rows]


def test_reasons_are_said_and_the_rest_is_kept_by_rank():
    table = judge(ASKED, CORPUS, "bm25", FOUND, Rule(depth=5, keep=2))
    assert kept(table) == [("q0", "d1"), ("q0", "d2"), ("q1", "d2"), ("q1", "d1")]
    said = {(row["query"], row["document"]): row["reason"] for row in table.to_pylist()}
    assert said["q0", "d0"] == "relevant"
    assert said["q0", "d3"] == "same text"
    assert said["q1", "d0"] == "rank"
    assert kept(judge(ASKED, CORPUS, "bm25", FOUND, Rule(skip=3))) == [("q0", "d2"), ("q1", "d0"), ("q1", "d3")]


def test_a_teacher_drops_what_it_holds_relevant():
    scores = dict(zip(TEXTS, (0.9, 0.95, 0.1, 0.9, 0.5), strict=True))
    table = judge(
        ASKED, CORPUS, "ann", FOUND, Rule(), teacher=lambda _, documents: np.array([scores[d] for d in documents])
    )
    assert kept(table) == [("q0", "d2"), ("q1", "d2")]  # the others score above q1's relevant document
    rows = {(row["query"], row["document"]): row for row in table.to_pylist()}
    assert rows["q0", "d1"]["reason"] == "teacher"
    assert rows["q0", "d1"]["teacher"] == pytest.approx(0.95)
    assert rows["q1", "d2"]["teacher_positive"] == pytest.approx(0.5)


def test_people_s_judgments_are_a_source():
    places, scores = judged(ASKED)
    assert places.tolist() == [[1], [-1]]
    assert scores.tolist() == [[1.0], [0.0]]
    assert kept(judge(ASKED, CORPUS, "judged", (places, scores), Rule())) == [("q0", "d1")]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 20), st.integers(1, 7))
def test_nearest_is_exact_in_every_block_size(seed, count, k, block):
    draws = np.random.default_rng(seed)
    documents, asked = (
        draws.integers(-2, 3, (count, 3)).astype(np.float32),
        draws.normal(size=(2, 3)).astype(np.float32),
    )
    places, scores = nearest(asked, documents, k, block)
    expected = np.sort(asked @ documents.T, axis=1)[:, ::-1][:, :k]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(asked @ documents.T, places, 1), scores, atol=1e-5)


def test_draws_are_different_never_relevant_and_fill_up_at_random():
    pools = Pools({"judged": [[1]], "bm25": [[1, 2]], "ann": [[]]}, {"judged": 1.0, "bm25": 1.0})
    for seed in range(20):
        places, sources = pools.draw(0, 4, np.random.default_rng(seed), frozenset([0]), 5)
        assert sorted(places) == [1, 2, 3, 4]
        assert sources[2:] == ["random", "random"]
        assert set(sources[:2]) <= {"judged", "bm25"}
    shares = [pools.draw(0, 1, np.random.default_rng(seed), frozenset([0]), 5)[1][0] for seed in range(400)]
    assert 0.4 < shares.count("judged") / 400 < 0.6
    unused = Pools({"judged": [[1]], "bm25": [[2]], "ann": [[3]]}, {"bm25": 1.0})
    assert unused.draw(0, 1, np.random.default_rng(0), frozenset([0]), 5) == ([2], ["bm25"])


def test_a_teacher_is_asked_once_for_a_pair(tiny):
    encoder, asked = Encoder.load(tiny), []
    teacher = by_encoder(encoder)

    def counted(queries, documents):
        asked.append(len(queries))
        return teacher(queries, documents)

    remembered = Remembered(counted, ASKED, CORPUS)
    first = remembered(np.array([0, 1, 0]), np.array([0, 4, 0]))
    assert asked == [2]
    np.testing.assert_array_equal(remembered(np.array([1]), np.array([4])), first[1:2])
    assert asked == [2]
    expected = (encoder.encode(["red one?", "green?"], "query") * encoder.encode(["red one", "green"])).sum(1)
    np.testing.assert_allclose(first[:2], expected, atol=1e-6)


def test_a_document_in_chunks_gives_one_pair_with_its_closest_chunk():
    corpus = Corpus.of([Document("a#0", "red"), Document("a#1", "red one"), Document("b#7", "blue")])
    assert corpus.places == {"a": [0, 1], "b#7": [2]}
    asked = Queries(("q",), ("one",), ({0: 1, 1: 1, 2: 1},))
    assert pairs(asked, corpus).tolist() == [[0, 1], [0, 2]]


def test_a_written_corpus_is_mapped(tmp_path):
    found = Corpus.write((Document(f"d{n}", text) for n, text in enumerate(TEXTS)), tmp_path / "corpus.arrow")
    assert found.ids == CORPUS.ids
    assert found.texts([3, 1]) == ["red one", "red two"]
    assert [text for block in found.blocks(2) for text in block] == TEXTS
