"""Training a retriever on Ray: negatives mined, two workers as one, killed and gone on with, loaded elsewhere."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
import torch.multiprocessing

from raylm.config import build
from raylm.retrieval.config import RetrieverConfig
from raylm.retrieval.corpus import Corpus
from raylm.retrieval.encoder import Encoder
from raylm.retrieval.mine import negatives
from raylm.retrieval.prepare import check, documents, load
from raylm.retrieval.run import Run
from raylm.storage import Store

pytestmark = pytest.mark.usefixtures("ray_cluster")
ROOT = Path(__file__).parent.parent.parent
BEASTS, PLACES = ("otter", "falcon", "badger", "salmon"), ("harbour", "station", "market", "museum")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A random encoder of two narrow layers with the vocabulary of all-MiniLM."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    from raylm.llm import models

    folder = tmp_path_factory.mktemp("small")
    tokenizer = AutoTokenizer.from_pretrained(models.resolve_encoder("all-minilm-l6-v2").path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collection")
    both = [(beast, place) for beast in BEASTS for place in PLACES]
    rows = [{"_id": f"{b}-{p}", "title": b, "text": f"was seen at the {p}"} for b, p in both]
    asked = [{"_id": f"{n}-{b}-{p}", "text": f"{w} the {b} at the {p}"} for b, p in both
             for n, w in enumerate(("who saw", "when was"))]  # fmt: skip
    for name, found in (("corpus", rows), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (folder / "qrels").mkdir()
    for number, split in enumerate(("train", "dev")):
        lines = [f"{number}-{b}-{p}\t{b}-{p}\t1\n" for b, p in both]
        (folder / f"qrels/{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return str(folder)


def config(small, collection, **changes):
    plain = {"data": collection, "model": small, "max_length": 32, "batch_size": 6, "lr": 1e-3, "epochs": 2,
             "negatives": {"hard": 2}, "loss": "quadruplet"}  # fmt: skip
    return build(RetrieverConfig, plain | changes)


def run_of(wanted, ranks):
    from raylm.retrieval.bm25 import BM25

    found, _, _ = check(wanted)
    corpus = Corpus.of(documents(wanted, found, Encoder.load(wanted.model).tokenizer))
    data = load(wanted, found, corpus)
    return Run(wanted, data, negatives(wanted.negatives, data.train, corpus, BM25.of(corpus.texts(range(16)))), ranks)


def one_rank(rank, world, wanted, folder):
    """Gradients and value of the first batch, without dropout."""
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group(
            "gloo", f"file://{folder}/meet-{wanted.piece}", rank=rank, world_size=world
        )
    run = run_of(wanted, (rank, world))
    run.encoder.eval()
    value, vectors = run._backward(0, run._batch(0))
    gradients = {name: p.grad for name, p in run.encoder.named_parameters() if p.grad is not None}
    run.optimizer.step()
    ranked = run.looks.vectors(run.encoder)
    torch.save((value, gradients, vectors.queries.detach(), torch.from_numpy(ranked)), f"{folder}/{world}-{rank}.pt")
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("loss", "piece"), [("infonce_hard", 0), ("quadruplet", 2)])
def test_two_workers_have_the_loss_and_the_gradients_of_one(small, collection, tmp_path, loss, piece):
    wanted = config(small, collection, loss=loss, piece=piece, batch_size=10, soft={"kind": "uniform"})
    one_rank(0, 1, wanted, tmp_path)
    torch.multiprocessing.spawn(one_rank, (2, wanted, tmp_path), nprocs=2)
    value, gradients, queries, ranked = torch.load(tmp_path / "1-0.pt")
    for rank in range(2):
        found = torch.load(tmp_path / f"2-{rank}.pt")
        assert found[0] == pytest.approx(value, abs=1e-6)
        torch.testing.assert_close(found[2], queries)
        torch.testing.assert_close(found[3], ranked, atol=1e-4, rtol=1e-4)
        assert found[1].keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-3)


def start(*arguments):
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}  # the session's
    command = [sys.executable, "-m", "jobs.train_retriever", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(job):
    printed, _ = job.communicate(timeout=400)
    assert job.returncode == 0, printed
    return printed


def test_a_killed_run_ends_as_one_that_was_not(small, collection, tmp_path):
    arguments = (f"data={collection}", f"model={small}", "max_length=32", "batch_size=4", "lr=0.001", "epochs=3",
                 "checkpoint_every=2", "loss=quadruplet", "negatives.ann=1", "soft.kind=bm25")  # fmt: skip
    finished(start(*arguments, f"out={tmp_path}/whole"))
    steps = tmp_path / "steps"
    killed = (*arguments, f"out={tmp_path}/killed", f"step_log={steps}")
    job = start(*killed)
    deadline = time.monotonic() + 300
    while not (steps.exists() and len(steps.read_text().splitlines()) >= 7):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGKILL)
    job.wait()
    finished(start(*killed))
    logged = [json.loads(line)["step"] for line in steps.read_text().splitlines()]
    assert sorted(set(logged)) == list(range(1, 13))
    assert len(logged) - 12 <= 2  # checkpoint_every
    whole, again = (Store(f"{tmp_path}/{name}").manifest() for name in ("whole", "killed"))
    assert whole.outputs == again.outputs  # weights, negatives, every row
    assert whole.figures == again.figures
    encoder = Encoder.load(f"{tmp_path}/whole/model")
    assert encoder.hash == whole.figures["hash"]
    rows = pq.read_table(tmp_path / "whole/data/negatives.parquet").to_pylist()
    assert {row["reason"] for row in rows if row["document"] == row["query"].split("-", 1)[1]} == {"relevant"}
    assert {row["source"] for row in rows} == {"bm25"}
    assert "Mean distance from the query" in (tmp_path / "killed/report.html").read_text()
    assert np.isfinite(encoder.encode(["who saw the otter"])).all()
