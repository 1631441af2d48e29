"""Training a retriever in one process: resumable to the bit, gradient caching exact, negatives and alarms as asked."""

import numpy as np
import pytest
import torch

from raylm.config import build
from raylm.errors import UserError
from raylm.retrieval import mine
from raylm.retrieval.bm25 import BM25
from raylm.retrieval.config import RetrieverConfig
from raylm.retrieval.corpus import Corpus
from raylm.retrieval.encoder import Encoder
from raylm.retrieval.prepare import check, documents, load
from raylm.retrieval.run import Run
from raylm.train import checkpoint


def config(collection, tiny, **changes):
    plain = {"data": collection, "model": tiny, "max_length": 16, "batch_size": 3, "epochs": 2, "lr": 1e-3,
             "relevant_from": 2, "negatives": {"hard": 2, "judged": 1.0}}  # fmt: skip
    return build(RetrieverConfig, plain | changes)


def made(wanted, saved=None, ranks=(0, 1)):
    found, _, _ = check(wanted)
    encoder = Encoder.load(wanted.model)
    data = load(wanted, found, Corpus.of(documents(wanted, found, encoder.tokenizer)))
    index = BM25.of(data.corpus.texts(range(len(data.corpus))))
    return Run(wanted, data, mine.negatives(wanted.negatives, data.train, data.corpus, index), ranks, saved)


def nothing(*_):
    pass


def weights(run):
    return {name: value.clone() for name, value in run.encoder.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("kind", ["quadruplet", "infonce_hard", "margin_mse", "triplet_own"])
def test_it_learns_and_is_saved_whole(collection, tiny, tmp_path, kind):
    negatives = {"hard": 2, "judged": 1.0, "teacher": tiny if kind == "margin_mse" else ""}
    run = made(config(collection, tiny, loss=kind, epochs=6, negatives=negatives, keep_best=False))
    before = weights(run)
    run.train(nothing, nothing)
    log = run.finish(tmp_path / "model")
    assert all(not torch.equal(value, before[name]) for name, value in weights(run).items() if "word" in name)
    assert len(log["looks"]) == 7
    assert set(log["after"]) == set(run.data.dev.ids)
    if kind != "margin_mse":
        assert run.rows[-1]["loss"] < run.rows[0]["loss"]
        gaps = [row["distance_hard"] - row["distance_relevant"] for row in run.rows]
        assert np.mean(gaps[-3:]) > np.mean(gaps[:3])
    again = Encoder.load(str(tmp_path / "model"))
    assert again.hash == log["hash"]
    np.testing.assert_array_equal(again.encode(["red one"]), run.encoder.encode(["red one"]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"freeze_layers": 1},
        {"adapter": True},
        {"negatives": {"hard": 1, "ann": 1.0, "refresh_every": 2, "warmup_share": 0.3}},
        {"soft": {"kind": "enhanced", "folds": 3}, "loss": "quadruplet"},
    ],
)
def test_a_resumed_run_is_the_run(collection, tiny, tmp_path, changes):
    wanted = config(collection, tiny, checkpoint_every=3, **changes)

    def save(step, state):
        (tmp_path / f"step-{step}").mkdir()
        checkpoint.save(tmp_path / f"step-{step}", 0, 1, state)

    whole = made(wanted)
    whole.train(nothing, save)
    resumed = made(wanted, tmp_path / "step-3")
    assert resumed.first == 3
    resumed.train(nothing, nothing)
    assert resumed.rows == whole.rows
    assert resumed.looks.rows == whole.looks.rows
    assert resumed.looks.refreshes == whole.looks.refreshes
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name])


@pytest.mark.parametrize("kind", ["quadruplet_b", "infonce_hard"])
def test_gradient_caching_gives_the_gradients_of_the_whole_batch(collection, tiny, kind):
    found = []
    for piece in (0, 1, 2):
        run = made(config(collection, tiny, loss=kind, piece=piece, batch_size=4))
        run.encoder.eval()  # without dropout, whose draws depend on the pieces
        value, _ = run._backward(0, run._batch(0))
        found.append((value, {name: p.grad for name, p in run.encoder.named_parameters() if p.grad is not None}))
    for value, gradients in found[1:]:
        assert value == pytest.approx(found[0][0], abs=1e-6)
        assert gradients.keys() == found[0][1].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][1][name], atol=1e-6, rtol=1e-4)


def test_pieces_see_the_same_dropout_twice(collection, tiny):
    run = made(config(collection, tiny, piece=1))
    run.encoder.train()
    batch = run._batch(0)
    with torch.no_grad():
        first = run._encode(run.towers, 0, 1, batch, np.array([1]))
    torch.testing.assert_close(run._encode(run.towers, 0, 1, batch, np.array([1])), first)


def test_batches_hold_every_pair_once_an_epoch_and_no_relevant_negative(collection, tiny):
    run = made(config(collection, tiny))
    seen = []
    for step in range(run.pieces):
        batch = run._batch(step)
        seen += list(zip(batch["numbers"].tolist(), batch["places"].tolist(), strict=True))
        for number, row in zip(batch["numbers"], batch["hard"], strict=True):
            assert not set(row.tolist()) & run.data.train.relevant[number]
            assert len(set(row.tolist())) == 2
        assert sum(batch["sources"].values()) == batch["hard"].size
    assert sorted(seen) == sorted(map(tuple, run.data.pairs.tolist()))


def test_the_encoders_own_negatives_are_its_nearest_documents(collection, tiny):
    run = made(config(collection, tiny, negatives={"hard": 1, "bm25": 0.0, "ann": 1.0, "keep": 3}))
    rows = run.looks.mine(0, [[] for _ in run.data.train.ids])
    vectors, asked = run.looks.vectors(run.encoder), run.encoder.encode(run.data.train.texts, "query")
    for number, row in enumerate(rows):
        order = np.argsort(-(vectors @ asked[number]), kind="stable")
        assert row == [place for place in order.tolist() if place not in run.data.train.relevant[number]][:3]
    run.train(nothing, nothing)
    assert [row["step"] for row in run.looks.refreshes] == [0, 0, 3]  # the first one was asked for here
    assert run.rows[0]["ann"] == 3


def test_collapse_ends_the_run_and_says_why(collection, tiny):
    run = made(config(collection, tiny, epochs=10, loss="quadruplet"))
    with torch.no_grad():
        for value in run.encoder.parameters():
            value.zero_()
        run.encoder.model.encoder.layer[-1].output.LayerNorm.bias.fill_(1.0)  # one vector for every text
    with pytest.raises(UserError, match="collapse: for 20 steps"):
        run.train(nothing, nothing)
    assert run.rows[0]["loss"] == pytest.approx(run.margins.collapsed, abs=1e-4)


def test_a_loss_that_is_not_finite_names_its_queries(collection, tiny):
    run = made(config(collection, tiny))
    with torch.no_grad():
        run.encoder.model.encoder.layer[0].output.dense.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 1: loss is nan; the batch holds queries q-"):
        run.step(0)


def test_settings_that_contradict_each_other_are_refused(collection, tiny):
    for changes, message in (
        ({"loss": "quadruplet", "negatives": {"hard": 0}}, "needs negatives.hard"),
        ({"loss": "margin_mse"}, "needs negatives.teacher"),
        ({"negatives": {"bm25": 0.0}}, "hard negatives need a source"),
        ({"margins": {"simple": 0.1}}, "simple=0.1 must be more than hard=0.1"),
        ({"batch_size": 3, "workers": 2}, "batch_size 3 is not a multiple of workers 2"),
    ):
        with pytest.raises(UserError, match=message):
            config(collection, tiny, **changes)
    with pytest.raises(UserError, match=r"9 documents are too few for negatives.hard=9"):
        made(config(collection, tiny, negatives={"hard": 9}))
