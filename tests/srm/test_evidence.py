"""The retrieval branch: a response is supported as far as the index' best documents hold its words."""

import numpy as np
import pytest

from raylm.retrieval.index import Index, Source
from raylm.srm.evidence import Evidence
from raylm.srm.model import RewardModel
from raylm.srm.run import Run

from .conftest import WORDS, rows, write


def nothing(*_):
    """Heed no step and keep no checkpoint."""


@pytest.fixture
def index(tmp_path):
    """The directory of an index that knows colours and numbers."""
    texts = ["Paris is red and has 12 bridges", "Rome is green", "a good thing to write about is good"]
    vectors = np.eye(3, 4, dtype=np.float32)
    Index.build(["paris", "rome", "good"], texts, vectors, source=Source("drawn", "0")).save(str(tmp_path / "index"))
    return str(tmp_path / "index")


def test_support_is_the_share_of_what_is_said_that_documents_hold(index):
    evidence = Evidence(index)
    assert evidence("How is Paris?", "Paris is red") == 1.0
    assert evidence("How is Paris?", "Paris has 13 bridges") == pytest.approx(2 / 3)
    assert evidence("How is Paris?", "Paris has 12 bridges") == 1.0
    assert evidence("How is Paris?", "the") is None  # says nothing
    assert evidence("Zagreb?", "Zagreb") is None  # nothing is known of it


def test_a_model_learns_and_is_loaded_with_its_index(index, encoder, configured, tmp_path):
    """Documents hold the word that was preferred, so evidence alone ranks the pairs."""
    assert "good" in WORDS
    branches = [{"name": "retrieval", "kind": "tool", "index": index}]
    run = Run(configured(branches=branches, pairs=write(tmp_path / "p.jsonl", rows()[0]), ratings=""), encoder)
    run.train(nothing, nothing)
    run.finish(tmp_path / "model")
    model = RewardModel.load(tmp_path / "model")
    better, worse = model.score("write about red", ["good thing", "blue two"])
    assert better.dimensions["retrieval"] > worse.dimensions["retrieval"]
    assert better.score > worse.score
    assert better.score == pytest.approx(model.bias + sum(better.attribution.values()), abs=1e-5)
