"""Soft targets of a run: distributions over what counts, and heads that have not seen the query they score."""

import numpy as np
import pytest
import torch

from raylm.config import build
from raylm.errors import UserError
from raylm.retrieval import soft as module
from raylm.retrieval.corpus import Corpus, Queries, pairs
from raylm.retrieval.data import Document
from raylm.retrieval.encoder import Encoder
from raylm.retrieval.negatives import by_encoder
from raylm.retrieval.soft import Pool, SoftTargets, read
from raylm.softlabels.enhancement_config import EnhancementConfig
from raylm.softlabels.words import segmenter

COLOURS, NUMBERS = ("red", "green", "blue"), ("one", "two", "three")
BOTH = [(colour, number) for colour in COLOURS for number in NUMBERS]
CORPUS = Corpus.of(Document(f"{c}-{n}", f"the {c} is a {n}") for c, n in BOTH)
ASKED = Queries(
    tuple(f"q{n}" for n in range(9)), tuple(f"which {c} {n}" for c, n in BOTH), tuple({place: 1} for place in range(9))
)
NEGATIVES = [[place for place in range(9) if place != query and place // 3 == query // 3] for query in range(9)]


def made(tiny, encoder=None, places=None, memory=None, **changes):
    encoder = encoder or Encoder.load(tiny)
    pool = Pool(
        ASKED, pairs(ASKED, CORPUS), CORPUS, np.arange(9) if places is None else places, NEGATIVES, encoder,
        by_encoder(encoder), memory,
    )  # fmt: skip
    return SoftTargets(build(EnhancementConfig, changes), pool, seed=0)


def batch():
    numbers = np.array([4, 0, 8])
    places = np.array([4, 0, 8, 3, 1, 7])
    allowed = torch.ones(3, 6, dtype=torch.bool)
    allowed[0, 5] = False
    return numbers, places, allowed


@pytest.mark.parametrize("kind", ["uniform", "enhanced", "glle", "propagation", "bm25", "embedding", "teacher"])
@pytest.mark.parametrize("permute", [False, True])
def test_targets_are_distributions_with_the_relevant_document_on_top(tiny, kind, permute):
    rows = made(tiny, kind=kind, permute=permute, neighbours=3, folds=3).rows(*batch())
    torch.testing.assert_close(rows.sum(1), torch.ones(3))
    assert float(rows[0, 5]) == 0
    assert (rows.diagonal() >= rows.max(1).values - 1e-6).all()
    assert (rows[:, 3:].sum(1) > 0).all()


@pytest.mark.parametrize("terms", ["contextual", "bm25", "keyword"])
def test_enhanced_targets_favour_what_shares_words(tiny, terms):
    found = made(tiny, kind="enhanced", terms=terms, folds=3)
    scores = found.scores(np.array([0]), np.arange(9))[0]
    assert scores.argmax() == 0
    assert scores[[1, 2, 3, 6]].min() > scores[[4, 5, 7, 8]].max()  # red or one, against neither
    assert set(found.facts()["coefficients"]) == set(module.FEATURES)


@pytest.mark.parametrize("kind", ["enhanced", "bm25", "embedding", "glle"])
def test_a_table_and_a_memory_change_nothing(tiny, monkeypatch, kind):
    table = made(tiny, kind=kind, folds=3, neighbours=3, memory={}).rows(*batch())
    monkeypatch.setattr(module, "TABLE", 0)
    torch.testing.assert_close(made(tiny, kind=kind, folds=3, neighbours=3).rows(*batch()), table, atol=1e-5, rtol=1e-4)


def test_documents_that_are_not_of_the_pool_get_nothing(tiny):
    numbers, places, allowed = batch()
    rows = made(tiny, kind="bm25", places=np.array([0, 1, 4, 7, 8])).rows(numbers, places, allowed)
    assert (rows[:, 3] == 0).all()
    torch.testing.assert_close(rows.sum(1), torch.ones(3))


def test_another_label_for_a_query_changes_only_what_others_see(tiny):
    """The heads that score a query are fitted without it: its own features' weights do not move with its words."""
    plain = made(tiny, kind="enhanced", folds=9)._score
    heads = plain._term_heads()["document"]
    own = heads.weights_[plain.folds.of[0]].copy()
    heads.left[plain.folds.of[0]] *= 7
    heads.right[plain.folds.of[0]] += 1
    np.testing.assert_allclose(heads.fit().weights_[plain.folds.of[0]], own)


def test_too_large_a_table_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(module, "DENSE", 80)
    with pytest.raises(UserError, match="a table of 9 queries and 9 relevant documents"):
        made(tiny, kind="glle")


@pytest.mark.parametrize("prefix", ["", "the "])
def test_words_are_read_with_their_vectors_whatever_the_prefix(tiny, prefix):
    encoder = Encoder.load(tiny, document_prefix=prefix)
    texts = ["red ones", "the blue is a blue", ""]
    found = dict(read(encoder, texts, "document", segmenter("words")))
    assert [found[n].words for n in range(3)] == [("red", "ones"), ("the", "blue", "is", "a"), ()]
    ids, mask = encoder.tokens(texts[:1], "document").batch([0])
    with torch.no_grad():
        states = encoder.states(ids, mask)[0].numpy()
    first = 1 + bool(prefix)
    np.testing.assert_allclose(found[0].vectors[0], states[first], atol=1e-5)
    np.testing.assert_allclose(found[0].vectors[1], states[first + 1 : first + 3].mean(0), atol=1e-5)  # one ##s
