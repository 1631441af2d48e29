"""The index job's pieces without Ray, and the evaluation of what it makes, on a tiny encoder."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from raylm.config import build
from raylm.errors import UserError
from raylm.report import for_artefact
from raylm.retrieval import evaluate, show
from raylm.retrieval.data import Collection
from raylm.retrieval.encoder import Encoder
from raylm.retrieval.index import Index, Source
from raylm.retrieval.index_config import EvaluateRetrievalConfig, IndexConfig, SearchConfig
from raylm.retrieval.index_stage import IndexWorker, check_lengths, shards
from raylm.storage import Store
from tests.retrieval.conftest import WORDS


def write(folder, documents, queries, judged):
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": name, "text": text} for name, text in documents.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"_id": name, "text": text} for name, text in queries.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"{row}\n" for row in judged))
    return str(folder)


@pytest.fixture
def collection(tmp_path):
    documents = {f"d{n}": f"{word} {WORDS[(n + 1) % len(WORDS)]}" for n, word in enumerate(WORDS)}
    queries = {f"q{n}": documents[f"d{n}"] for n in range(5)}
    return write(tmp_path / "data", documents, queries, [f"q{n}\td{n}\t1" for n in range(5)])


def encoded(config):
    """Rows that a worker gives for all shards, and its summaries."""

    async def work():
        worker = IndexWorker(config)
        await worker.start()
        units = list(shards(Collection(config.data), config.shard))
        found = await asyncio.gather(*(worker.run(unit, Store(config.out)) for unit in units))
        await worker.close()
        return found

    found = asyncio.run(work())
    return [row for table, _ in found for row in table.to_pylist()], [summary for _, summary in found]


def test_shards_hold_every_document_once_and_know_their_content(collection):
    units = list(shards(Collection(collection), 4))
    assert [name for unit in units for name in unit.payload["ids"]] == [f"d{n}" for n in range(len(WORDS))]
    assert [unit.key for unit in units] == [unit.key for unit in shards(Collection(collection), 4)]
    assert len({unit.key for unit in units}) == len(units)


def test_a_worker_gives_the_vectors_of_the_encoder(collection, tiny):
    config = build(IndexConfig, {"data": collection, "model": tiny, "shard": 4})
    rows, summaries = encoded(config)
    expected = Encoder.load(tiny).encode([row["text"] for row in rows])
    np.testing.assert_allclose([row["vector"] for row in rows], expected, atol=1e-6)
    assert sum(summary["documents"] for summary in summaries) == len(WORDS)


def test_long_documents_are_counted_refused_or_cut_into_pieces(tmp_path, tiny):
    documents = {"long": " ".join(WORDS[:-1] * 3), "short": WORDS[0]}
    data = write(tmp_path / "data", documents, {"q": WORDS[0]}, ["q\tshort\t1"])
    config = build(IndexConfig, {"data": data, "model": tiny, "max_length": 12})
    with pytest.raises(UserError, match="1 of 2 documents have more than the 12 tokens"):
        check_lengths(Encoder.load(tiny, max_length=12), Collection(data), config)
    chunked = build(IndexConfig, {**config.model_dump(), "chunk": True, "chunk_overlap": 2})
    rows, (summary,) = encoded(chunked)
    assert summary["overlong"] == 1
    assert [row["id"] for row in rows] == [*(f"long#{n}" for n in range(len(rows) - 1)), "short"]
    assert Encoder.load(tiny, max_length=12).truncated([row["text"] for row in rows]) == 0
    assert {word for row in rows for word in row["text"].split()} == set(WORDS[:-1])
    with pytest.raises(UserError, match="chunk_overlap=10 must be less"):
        build(IndexConfig, {**config.model_dump(), "chunk": True, "chunk_overlap": 10})


@pytest.fixture
def index(collection, tiny, tmp_path):
    documents, encoder = list(Collection(collection).documents()), Encoder.load(tiny)
    ids, texts = [document.id for document in documents], [document.text for document in documents]
    built = Index.build(ids, texts, encoder.encode(texts), source=Source.of(encoder, tiny))
    built.save(str(tmp_path / "index"))
    return str(tmp_path / "index")


def evaluated(collection, tmp_path, name, **changes):
    config = {"data": collection, "out": str(tmp_path / name), "resamples": 200, **changes}
    return evaluate.run(build(EvaluateRetrievalConfig, config))


def test_rankings_are_measured_compared_and_kept(collection, index, tmp_path):
    words = evaluated(collection, tmp_path, "words", mode="bm25")
    assert words.figures["metrics"]["RR@10"]["mean"] == 1.0
    for mode in ("dense", "hybrid", "bm25"):
        found = evaluated(collection, tmp_path, mode, mode=mode, index=index, baseline=str(tmp_path / "words"))
        assert found.figures["metrics"]["R@100"]["mean"] == 1.0
        assert found.figures["comparison"]["RR@10"]["queries"] == 5
    rows = Store(str(tmp_path / "dense")).read_table("data/queries.parquet").to_pylist()
    assert {row["id"]: row["relevant"] for row in rows} == {f"q{n}": 1 for n in range(5)}
    run = str(tmp_path / "dense/data/run.trec")
    again = evaluated(collection, tmp_path, "again", run=run, baseline=str(tmp_path / "dense"))
    assert all(item["difference"] == 0 for item in again.figures["comparison"].values())
    assert "Against the baseline" in Path(for_artefact(str(tmp_path / "again"))).read_text()


def test_a_killed_evaluation_goes_on_behind_its_last_batch(collection, tmp_path, monkeypatch):
    """The third batch of one query ends the process; what the first two found is not looked for again."""
    monkeypatch.setattr(evaluate, "BATCH", 1)
    plain, asked = evaluate._asker, []

    def counting(dies_at):
        def make(*arguments):
            ask = plain(*arguments)

            def search(texts):
                if len(asked) == dies_at:
                    raise KeyboardInterrupt
                asked.extend(texts)
                return ask(texts)

            return search

        return make

    expected = evaluated(collection, tmp_path, "whole", mode="bm25")
    monkeypatch.setattr(evaluate, "_asker", counting(dies_at=2))
    with pytest.raises(KeyboardInterrupt):
        evaluated(collection, tmp_path, "killed", mode="bm25")
    monkeypatch.setattr(evaluate, "_asker", counting(dies_at=-1))
    found = evaluated(collection, tmp_path, "killed", mode="bm25")
    assert sorted(asked) == sorted(Collection(collection).queries().values())
    assert found.outputs == expected.outputs
    assert not Store(str(tmp_path / "killed")).names("parts")


def test_a_document_in_pieces_is_ranked_where_its_best_piece_is(tmp_path, tiny):
    """The one relevant document is the second piece of a long one, whose other pieces are far from the query."""
    pieces = {"long#0": WORDS[3], "long#1": WORDS[0], "long#2": WORDS[4], "other": WORDS[1]}
    data = write(tmp_path / "data", {"long": "x", "other": WORDS[1]}, {"q": WORDS[0]}, ["q\tlong\t1"])
    encoder = Encoder.load(tiny)
    built = Index.build(list(pieces), list(pieces.values()), encoder.encode(list(pieces.values())),
                        source=Source.of(encoder, tiny))  # fmt: skip
    built.facts["chunked"] = True
    built.save(str(tmp_path / "index"))
    for mode in ("dense", "bm25"):
        evaluated(data, tmp_path, mode, mode=mode, index=str(tmp_path / "index"))
        (row,) = Store(str(tmp_path / mode)).read_table("data/queries.parquet").to_pylist()
        assert row["first_relevant"] == 1
        assert row["found"].count("long") == 1


def test_a_judged_query_without_a_ranking_lowers_the_mean(collection, tmp_path):
    (tmp_path / "run.trec").write_text("q0 Q0 d0 1 1.0 t\nq1 Q0 d1 1 1.0 t\n")
    found = evaluated(collection, tmp_path, "out", run=str(tmp_path / "run.trec"))
    assert found.figures["metrics"]["nDCG@10"]["mean"] == pytest.approx(2 / 5)
    assert found.figures["unranked"] == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mode": "bm25", "metrics": ["nonsense"]}, "ir-measures does not know nonsense"),
        ({"mode": "bm25", "split": "dev"}, "no judgments qrels/dev.tsv"),
        ({"mode": "bm25", "relevant": 2}, "no query with a document of grade 2"),
        ({"mode": "dense"}, "mode=dense needs index="),
        ({"index": "/nowhere/at/all"}, "no index here"),
        ({"run": "/nowhere.trec"}, "no such file"),
        ({"mode": "bm25", "baseline": "/nowhere"}, "no finished evaluate-retrieval here"),
    ],
)
def test_bad_input_is_refused(collection, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        evaluated(collection, tmp_path, "out", **changes)


def test_another_encoder_than_the_index_is_of_is_refused(collection, index, tiny, tmp_path):
    encoder = Encoder.load(tiny)
    encoder.model.embeddings.word_embeddings.weight.data[6] += 1
    encoder.save(tmp_path / "other")
    with pytest.raises(UserError, match="holds vectors of the encoder"):
        evaluated(collection, tmp_path, "out", index=index, model=str(tmp_path / "other"))


@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
def test_a_search_is_printed(index, capsys, mode):
    show.search(index, f"{WORDS[2]} {WORDS[3]}", build(SearchConfig, {"k": 3, "mode": mode}))
    lines = capsys.readouterr().out.splitlines()
    assert "recall@10 1.000" in " ".join(lines[:3])
    assert any(" d2 " in line and " 1 " in f" {line}" for line in lines)
