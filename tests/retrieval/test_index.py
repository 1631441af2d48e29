"""The index: the same answers as a plain search, whatever was added and deleted, and ties by id."""

import math
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.errors import UserError
from raylm.retrieval import fusion
from raylm.retrieval.fusion import Hit
from raylm.retrieval.index import DIGITS, Index, Source
from raylm.retrieval.index_config import IndexSettings
from raylm.retrieval.live import LiveIndex

SOURCE = Source("tiny", "0123456789abcdef")
WORDS = ("apple", "pear", "plum", "cherry", "grape", "melon")


def unit(count, dimension=8, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def texts(count, seed=0):
    draws = np.random.default_rng([seed, 1])
    return [" ".join(draws.choice(WORDS, draws.integers(1, 6))) for _ in range(count)]


def build(count, kind="flat", seed=0, dimension=8, **changes):
    names = [f"d{n:04d}" for n in range(count)]
    options = IndexSettings(kind=kind, **changes)
    return Index.build(names, texts(count, seed), unit(count, dimension, seed), source=SOURCE, settings=options)


def plain(vectors, query, k):
    """By hand: names to vectors, best first, ties by name."""
    scores = {name: round(float(np.float32(query @ row)), DIGITS) for name, row in vectors.items()}
    return sorted(scores, key=lambda name: (-scores[name], name))[:k]


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_it_finds_what_a_plain_search_finds(kind):
    index = build(400, kind, probes=1_000)
    rows = dict(zip(index.ids, unit(400), strict=True))
    queries = unit(20, seed=5)
    found = index.search(queries, 10)
    assert index.kind == kind
    assert index.facts["recall_at_10"] == pytest.approx(1.0, abs=0.01)
    expected = [plain(rows, query, 10) for query in queries]
    shared = [len({hit.id for hit in hits} & set(names)) for hits, names in zip(found, expected, strict=True)]
    assert np.mean(shared) >= 9.9
    if kind != "hnsw":
        assert [[hit.id for hit in hits] for hits in found] == expected


def test_recall_below_one_is_seen():
    index = build(400, "ivf", lists=40, probes=1, dimension=16)
    assert 0.05 < index.facts["recall_at_10"] < 0.9


actions = st.lists(
    st.tuples(st.sampled_from(["add", "delete"]), st.lists(st.integers(0, 60), min_size=1, max_size=9, unique=True)),
    max_size=6,
)


@settings(deadline=None, max_examples=40)
@given(actions, st.sampled_from(["flat", "hnsw", "ivf"]), st.integers(1, 12))
def test_any_changes_give_the_index_of_what_is_left(steps, kind, k):
    index = build(30, kind, probes=1_000)
    known = dict(zip(index.ids, unit(30), strict=True))
    for number, (action, places) in enumerate(steps):
        names = [f"d{place:04d}" for place in places]
        if action == "add":
            fresh = unit(len(names), seed=100 + number)
            index = index.add(names, texts(len(names), number), fresh)
            known |= dict(zip(names, fresh, strict=True))
        else:
            index, unknown = index.delete(names)
            assert unknown == [name for name in names if name not in known]
            known = {name: row for name, row in known.items() if name not in names}
    assert len(index) == len(known)
    assert sorted(index.ids) == sorted(known)
    queries = unit(3, seed=7)
    for version in (index, index.compacted()):
        found = [[hit.id for hit in hits] for hits in version.search(queries, k)]
        assert found == [plain(known, query, k) for query in queries]
    assert index.compacted().search_words(WORDS, k) == Index.build(
        index.ids, [index.text(name) for name in index.ids], np.stack([known[n] for n in index.ids])
        if known else np.zeros((0, 8)), source=SOURCE, settings=index.settings,
    ).search_words(WORDS, k)  # fmt: skip


def test_equal_documents_come_by_id_even_where_only_some_fit():
    row = unit(1)
    names = [f"n{number:02d}" for number in np.random.default_rng(0).permutation(50)]
    index = Index.build(names, ["same"] * 50, np.repeat(row, 50, 0), source=SOURCE)
    assert [hit.id for hit in index.search(row, 3)[0]] == ["n00", "n01", "n02"]
    assert [hit.id for hit in index.search_words(["same"], 3)[0]] == ["n00", "n01", "n02"]
    grown = index.add(["a"], ["same"], row)
    assert [hit.id for hit in grown.search(row, 2)[0]] == ["a", "n00"]


def test_bm25_is_its_formula_and_later_documents_are_weighed_alike():
    said = texts(60)
    index = build(60, language="none")
    counts = [Counter(text.split()) for text in said]
    average = np.mean([count.total() for count in counts])
    held = Counter(word for count in counts for word in count)

    def by_hand(query, count):
        total = 0.0
        for word in query.split():
            tf = count[word]
            rarity = math.log(1 + (60 - held[word] + 0.5) / (held[word] + 0.5))
            total += rarity * tf / (tf + 1.2 * (1 - 0.75 + 0.75 * count.total() / average))
        return total

    query = "apple plum plum"
    found = dict(index.search_words([query], 60)[0])
    for name, count in zip(index.ids, counts, strict=True):
        assert found.get(name, 0.0) == pytest.approx(by_hand(query, count), abs=1e-5)
    later = index.add(["new"], ["apple melon plum"], unit(1))
    score = dict(later.search_words([query], 61)[0])["new"]
    assert score == pytest.approx(by_hand(query, Counter(["apple", "melon", "plum"])), abs=1e-5)


def test_english_is_stemmed_and_chinese_segmented():
    vectors = unit(2)
    english = Index.build(["a", "b"], ["the running dogs", "a cat sleeps"], vectors, source=SOURCE)
    assert [hit.id for hit in english.search_words(["dog runs"], 5)[0]] == ["a"]
    assert english.search_words(["??"], 5) == [[]]
    chinese = Index.build(["a", "b"], ["北京大学在哪里", "上海的天气"], vectors, source=SOURCE)
    assert [hit.id for hit in chinese.search_words(["北京大学"], 5)[0]] == ["a"]
    assert chinese.base.lexical.bm25.segment == "chinese"


def test_changes_in_plenty_are_built_in():
    index = build(300)
    fresh = [f"x{n}" for n in range(300)]
    grown = index.add(fresh, texts(300, 9), unit(300, seed=9))
    assert len(grown.base.ids) == 600
    assert not grown.tail.ids
    assert len(index) == 300, "the version before is as it was"


@given(
    st.lists(st.lists(st.sampled_from("abcdef"), unique=True, max_size=6), min_size=1, max_size=3), st.integers(1, 6)
)
def test_fusion_is_the_sum_of_reciprocal_ranks(rankings, k):
    found = fusion.reciprocal_rank([[Hit(name, 0.0) for name in names] for names in rankings], k)
    totals = {
        name: sum(1 / (60 + names.index(name) + 1) for names in rankings if name in names)
        for name in {name for names in rankings for name in names}
    }
    expected = sorted(totals, key=lambda name: (-totals[name], name))[:k]
    assert [hit.id for hit in found] == expected
    assert [hit.score for hit in found] == pytest.approx([totals[name] for name in expected])


class Stub:
    """Stands for an encoder: words to the mean of fixed vectors."""

    def __init__(self, hash=SOURCE.hash):
        self.hash = hash

    def encode(self, texts, kind="document", batch_size=64):
        table = dict(zip(WORDS, np.eye(8, dtype=np.float32), strict=False))
        rows = np.stack([sum(table[word] for word in text.split()) for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_text_is_searched_by_vectors_words_or_both_and_by_no_other_encoder():
    said = ["apple apple", "pear", "plum pear"]
    index = Index.build(["a", "b", "c"], said, Stub().encode(said), source=SOURCE)
    assert [hit.id for hit in index.search_text(["pear"], Stub(), 2)[0]] == ["b", "c"]
    assert [hit.id for hit in index.search_text(["plum"], k=2, mode="bm25")[0]] == ["c"]
    both = index.search_text(["pear"], Stub(), 3, "hybrid")[0]
    assert both[0] == Hit("b", pytest.approx(2 / 61))
    for ask in (
        lambda: index.search_text(["pear"], Stub("another")),
        lambda: index.add(["d"], ["pear"], unit(1), encoder="another"),
    ):
        with pytest.raises(UserError, match="holds vectors of the encoder tiny"):
            ask()
    with pytest.raises(UserError, match="needs the encoder tiny"):
        index.search_text(["pear"])


@pytest.mark.parametrize(
    ("ids", "vectors", "says"),
    [
        (["a", "a"], unit(2), "more than once, such as a"),
        (["a"], unit(2), "1 ids, 1 texts and 2 vectors"),
        (["a", "b"], np.array([[1.0] * 8, [np.nan] * 8]), "first that of document b"),
        (["a", "b"], np.array([[0.0] * 8, [1.0] * 8]), "first that of document a"),
        (["a"], unit(1, 4), r"shape \[1, 4\]; this index takes \[vectors, 8\]"),
    ],
)
def test_what_cannot_be_indexed_is_refused_by_name(ids, vectors, says):
    index = build(5)
    with pytest.raises(UserError, match=says):
        index.add(ids, ["x"] * len(ids), vectors)
    if vectors.shape[1] == 8:
        with pytest.raises(UserError, match=says):
            Index.build(ids, ["x"] * len(ids), vectors, source=SOURCE)


def test_searches_of_nothing_and_of_too_much():
    index = build(3)
    assert [len(hits) for hits in index.search(unit(2), 10)] == [3, 3]
    assert index.search(unit(1), 0) == [[]]
    assert index.search(np.zeros((0, 8)), 5) == []
    emptied, _ = index.delete(index.ids)
    assert emptied.search(unit(1), 5) == [[]]
    assert emptied.search_words(["apple"], 5) == [[]]
    with pytest.raises(UserError, match="vectors are zero or not finite, first that of vector 0"):
        index.search(np.full((1, 8), np.inf), 5)


def test_a_search_sees_one_version_while_others_are_put_in():
    """Every version's documents carry its number: no answer may mix two of them."""
    count, rows = 40, unit(40)
    names = [f"d{n:02d}" for n in range(count)]
    live = LiveIndex(Index.build(names, ["v0"] * count, rows, source=SOURCE))
    stop, wrong = threading.Event(), []

    def read():
        while not stop.is_set():
            version = live.current
            found = {version.text(hit.id) for hit in version.search(rows[:2], 10)[0]}
            if len(found) != 1:
                wrong.append(found)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, 30):
        live.add(names, [f"v{number}"] * count, rows)
    assert live.delete(["d00", "nobody"]) == ["nobody"]
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert len(live.current) == count - 1


def test_a_crowded_index_is_built_beside_its_use_and_loses_no_change(monkeypatch):
    names, rows = [f"d{n:04d}" for n in range(600)], unit(600)
    index = Index.build(names[:300], ["v0"] * 300, rows[:300], source=SOURCE)
    began, go_on, compacted = threading.Event(), threading.Event(), Index.compacted

    def slow(version):
        began.set()
        assert go_on.wait(30)
        return compacted(version)

    monkeypatch.setattr(Index, "compacted", slow)
    live = LiveIndex(index)
    live.add(names[300:], ["v1"] * 300, rows[300:])
    assert began.wait(30)
    live.add(names[:2], ["v2"] * 2, rows[:2])  # while it is built
    assert live.delete(["d0003", "nobody"]) == ["nobody"]
    assert live.current.waiting > 300
    before = live.current.search(rows[:20], 5)
    go_on.set()
    after = live.settle()
    assert after is live.current
    assert after.waiting == 5  # two that were replaced, those in their place, one that was deleted
    assert after.search(rows[:20], 5) == before
    assert [after.text(name) for name in ("d0000", "d0002", "d0400")] == ["v2", "v0", "v1"]
    assert "d0003" not in after


def test_a_build_that_fails_leaves_the_index_in_use(monkeypatch, caplog):
    names, rows = [f"d{n:04d}" for n in range(2000)], unit(2000)
    attempts = []

    def failing(version):
        attempts.append(version.waiting)
        raise MemoryError

    monkeypatch.setattr(Index, "compacted", failing)
    live = LiveIndex(Index.build(names[:300], ["v0"] * 300, rows[:300], source=SOURCE))
    for start in range(300, 2000, 100):
        live.add(names[start : start + 100], ["v1"] * 100, rows[start : start + 100])
        live.settle()
    assert len(live.current) == 2000
    assert attempts == [300, 700, 1500]  # each time twice as much has to wait
    assert "could not be built again" in caplog.text


def test_what_is_being_built_does_not_undo_a_replacement(monkeypatch):
    names, rows = [f"d{n:04d}" for n in range(600)], unit(600)
    go_on, compacted = threading.Event(), Index.compacted

    def slow(version):
        assert go_on.wait(30)
        return compacted(version)

    monkeypatch.setattr(Index, "compacted", slow)
    live = LiveIndex(Index.build(names[:300], ["v0"] * 300, rows[:300], source=SOURCE))
    live.add(names[300:], ["v1"] * 300, rows[300:])
    builder = live._builder
    other = Index.build(["x"], ["other"], rows[:1], source=SOURCE)
    live.replace(other)
    go_on.set()
    builder.join(30)
    assert live.current is other
