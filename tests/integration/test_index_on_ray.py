"""The index job on real Ray: killed and gone on with, it makes the index of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from raylm.retrieval.index import Index
from raylm.storage import Store

ROOT = Path(__file__).parent.parent.parent
TOPICS = ("harbour", "station", "otter", "falcon", "bread", "violin", "glacier", "engine")


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collection")
    (folder / "qrels").mkdir()
    documents = [(f"{topic}-{n}", f"note {n} about the {topic}") for topic in TOPICS for n in range(12)]
    rows = [json.dumps({"_id": name, "text": text}) for name, text in documents]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    rows = [json.dumps({"_id": topic, "text": f"what about the {topic}"}) for topic in TOPICS]
    (folder / "queries.jsonl").write_text("\n".join(rows))
    judged = [f"{name.split('-')[0]}\t{name}\t1" for name, _ in documents]
    (folder / "qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    return str(folder)


def start(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jobs.index", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(job):
    printed, _ = job.communicate(timeout=300)
    assert job.returncode == 0, printed
    return printed


def test_a_killed_job_goes_on_and_makes_the_same_index(collection, tmp_path):
    out = tmp_path / "killed"
    arguments = (f"data={collection}", "shard=4", "batch_size=2", f"out={out}")
    job = start(*arguments)
    deadline = time.monotonic() + 200
    while len(list((out / "parts").glob("*.parquet"))) < 3:
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    written = {file.name: file.stat().st_mtime_ns for file in (out / "parts").glob("[!.]*.parquet")}
    assert 3 <= len(written) < 24
    printed = finished(start(*arguments, "compute.max_workers=2", "compute.min_workers=2"))
    assert f"{len(written)} of 24 shards were done before" in printed
    index = Index.open(str(out))
    assert index.facts["recall_at_10"] == 1.0
    assert sorted(index.ids) == sorted(f"{topic}-{n}" for topic in TOPICS for n in range(12))
    encoder = index.encoder()
    for topic, hits in zip(TOPICS, index.search_text([f"the {topic}" for topic in TOPICS], encoder, 12), strict=True):
        assert {hit.id.split("-")[0] for hit in hits} == {topic}
    np.testing.assert_allclose(
        index.base.ann.vectors(), encoder.encode([index.text(name) for name in index.ids]), atol=1e-5
    )
    manifest = Store(str(out)).manifest()
    assert (manifest.figures["documents"], manifest.figures["kind"]) == (96, "flat")
    assert "What queries find" in (out / "report.html").read_text()
    assert finished(start(*arguments)).count("shards") == 0, "a finished job returns at once"
