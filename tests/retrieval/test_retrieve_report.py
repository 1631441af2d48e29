"""The stage's artefact and report, from a run in this process."""

from pathlib import Path

import pytest

from raylm import report
from raylm.config import build
from raylm.errors import UserError
from raylm.retrieval import mine, stage
from raylm.retrieval.bm25 import BM25
from raylm.retrieval.config import RetrieverConfig
from raylm.retrieval.encoder import Encoder
from raylm.retrieval.prepare import check
from raylm.retrieval.run import Run
from raylm.storage import StageRun


def finished(config, out):
    """What the stage leaves, made without Ray."""
    collection, census, digest = check(config)
    claim = StageRun("retrieve", config, str(out), {"collection": digest})
    work = out / "work"
    data = mine.prepare(config, collection, Encoder.load(config.model).tokenizer, work)
    mined = mine.negatives(config.negatives, data.train, data.corpus, BM25.load(work / "bm25"))
    claim.store.write_table("work/negatives.parquet", mined)
    run = Run(config, data, mined)
    run.train(lambda row: None, lambda step, state: None)
    claim.store.write_json("log.json", run.finish(out / "model"))
    stage._finish(claim, data, census, {"name": "tiny", "revision": "0"}, seconds=1.0)
    return claim


@pytest.mark.parametrize(
    "changes",
    [
        {"negatives": {"hard": 2, "judged": 1.0, "ann": 1.0}, "soft": {"kind": "enhanced", "folds": 3}},
        {"long_documents": "chunk", "max_length": 5, "chunk_overlap": 0, "dev": "", "dev_share": 0.3},
    ],
)
def test_an_artefact_is_whole_and_its_report_says_what_it_is(tiny, collection, tmp_path, changes):
    plain = {"data": collection, "model": tiny, "max_length": 16, "batch_size": 3, "epochs": 2, "lr": 1e-3,
             "relevant_from": 2, "loss": "quadruplet"}  # fmt: skip
    claim = finished(build(RetrieverConfig, plain | changes), tmp_path)
    page = Path(report.for_stage("retrieve", claim.store)).read_text()
    for said in ("Mean distance from the query", "Negatives", "nDCG@10", "quadruplet"):
        assert said in page
    assert ("relevance head" in page) == ("soft" in changes)
    assert ("chunks" in page) == ("long_documents" in changes)
    manifest = claim.store.manifest()
    assert {"model/modules.json", "model/1_Pooling/config.json", "data/negatives.parquet"} <= manifest.outputs.keys()
    assert not (tmp_path / "work").exists()
    assert Encoder.load(str(tmp_path / "model")).hash == manifest.figures["hash"]


def test_bad_input_is_refused_before_anything_is_made(tiny, collection, tmp_path):
    for changes, message in (
        ({"data": str(tmp_path)}, r"no corpus.jsonl"),
        ({"train": "absent"}, r"no judgments qrels/absent.tsv"),
        ({"max_length": 64}, r"max_length=64: this encoder reads 3 to 32 tokens"),
        ({"model": str(tmp_path / "absent")}, r"no such directory"),
        ({"freeze_layers": 2}, r"freeze_layers=2"),
    ):
        plain = {"data": collection, "model": tiny, "max_length": 16, "out": str(tmp_path / "out")}
        with pytest.raises(UserError, match=message):
            stage.run(build(RetrieverConfig, plain | changes))
        assert not (tmp_path / "out/work").exists()
