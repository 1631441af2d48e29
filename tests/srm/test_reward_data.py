"""Pairs and ratings: what is refused, what is kept apart, what pairs are made of."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.config import build
from raylm.errors import UserError
from raylm.srm.config import RewardConfig
from raylm.srm.data import fold_of, from_ratings, load, share
from tests.srm.conftest import BRANCHES, rows, write

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
RATED = {"prompt": "p", "response": "a", "scores": {"goodness": 2, "coin": 1}}


def test_files_of_all_forms_are_read_alike(tmp_path, files, configured):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pairs, _ = rows()
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress(Path(files["pairs"]).read_bytes()))
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "z.parquet")
    found = [
        load(configured(pairs=str(path))) for path in (files["pairs"], tmp_path / "z.jsonl.gz", tmp_path / "z.parquet")
    ]
    assert found[0].texts == found[1].texts == found[2].texts
    assert np.array_equal(found[0].train.pairs, found[2].train.pairs)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "p", "chosen": "a"}, ":41: rejected is None"),
        ({"prompt": "p", "chosen": " ", "rejected": "b"}, ":41: chosen is ' '"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, ":41: chosen and rejected are the same"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, ":41: prompt is ''"),
        (
            {"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"},
            ":41: prompt is .*list of role and content",
        ),
        ({**PAIR, "margin": "big"}, ":41: margin is 'big'"),
        ({**PAIR, "margin": float("nan")}, ":41: margin is nan"),
    ],
)
def test_malformed_pairs_are_refused_by_line_and_field(tmp_path, configured, row, says):
    pairs, _ = rows()
    with pytest.raises(UserError, match=says):
        load(configured(pairs=write(tmp_path / "bad.jsonl", [*pairs, row])))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**RATED, "scores": {"goodness": 99}}, "rating goodness is 99, outside the range 0 to 20 of branch goodness"),
        ({**RATED, "scores": {"goodness": float("nan")}}, "rating goodness is nan; it must be a number"),
        ({**RATED, "scores": {"goodness": "good"}}, "rating goodness is 'good'"),
        ({"prompt": "p", "response": "a"}, "scores is None"),
        ({"prompt": "p", "scores": {}}, "response is None"),
    ],
)
def test_malformed_ratings_are_refused(tmp_path, configured, row, says):
    _, ratings = rows()
    branches = [{**BRANCHES[0], "low": 0, "high": 20}, *BRANCHES[1:]]
    with pytest.raises(UserError, match=says):
        load(configured(ratings=write(tmp_path / "bad.jsonl", [*ratings, row]), branches=branches))


def test_what_cannot_be_learned_is_refused(tmp_path, configured):
    _, ratings = rows()
    flat = [{**row, "scores": {"goodness": 2, "coin": 1}} for row in ratings]
    with pytest.raises(UserError, match=r"branch goodness: all .* are 2; a dimension without variance"):
        load(configured(ratings=write(tmp_path / "flat.jsonl", flat)))
    with pytest.raises(UserError, match="branch goodness: no training row has the rating 'other'"):
        load(configured(branches=[{"name": "goodness", "column": "other"}]))
    with pytest.raises(UserError, match="branch quality learns preferences, and there are no training pairs"):
        load(configured(pairs=""))
    with pytest.raises(UserError, match="pairs and ratings are both empty"):
        load(configured(pairs="", ratings=""))
    with pytest.raises(UserError, match="no such file"):
        load(configured(pairs=str(tmp_path / "none")))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no rows"):
        load(configured(pairs=str(tmp_path / "empty.jsonl")))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"branches": [{"name": "a"}, {"name": "a"}]}, "twice"),
        ({"branches": [{"name": "a", "low": 3, "high": 1}]}, "low=3.0 is not below high=1.0"),
        ({"branches": [{"name": "a", "kind": "text"}]}, "a text branch needs column"),
        ({"retrain": ["quality"]}, "base and retrain belong together"),
        ({"batch_size": 5, "workers": 2}, "not a multiple of workers"),
        ({"loss": {"pairs": 0, "ratings": 0}}, "nothing would be learned"),
    ],
)
def test_configs_that_contradict_themselves_are_refused(change, says):
    with pytest.raises(UserError, match=says):
        build(RewardConfig, change)


def test_prompts_of_dev_and_test_are_never_trained_on(tmp_path, configured):
    pairs, _ = rows()
    found = load(configured(test_pairs=write(tmp_path / "test.jsonl", pairs[:5])))
    prompts = [
        {found.texts[place][0] for place in part.pairs.flatten()} for part in (found.train, found.dev, found.test)
    ]
    assert not prompts[0] & (prompts[1] | prompts[2])
    rated = {found.texts[place][0] for place in found.train.rated}
    assert not rated & (prompts[1] | prompts[2])
    assert found.overlaps == 5 + 10


def test_opposite_pairs_are_counted(tmp_path, configured):
    pairs, _ = rows()
    turned = {**pairs[0], "chosen": pairs[0]["rejected"], "rejected": pairs[0]["chosen"]}
    found = [load(configured(pairs=write(tmp_path / "x.jsonl", [*pairs, turned]), seed=seed)) for seed in range(8)]
    assert {data.contradictions for data in found} == {0, 1}  # 0 where the prompt is in dev


@given(st.lists(st.text(min_size=1, max_size=3), min_size=4, max_size=30), st.integers(2, 5), st.integers(0, 3))
def test_a_prompt_is_in_one_fold_and_on_one_side(groups, folds, seed):
    found = fold_of(groups, folds, seed)
    aside = share(groups, 0.3, seed)
    assert len({(group, int(fold)) for group, fold in zip(groups, found, strict=True)}) == len(set(groups))
    assert len({(group, bool(side)) for group, side in zip(groups, aside, strict=True)}) == len(set(groups))
    assert 1 <= len({group for group, side in zip(groups, aside, strict=True) if side}) <= max(1, len(set(groups)))


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0, 2))
def test_pairs_of_ratings_put_the_better_one_first_and_keep_to_a_prompt(worth, gap):
    groups = ["a" if n % 2 else "b" for n in range(len(worth))]
    pairs, margins = from_ratings(np.arange(len(worth)), np.array(worth), groups, gap)
    for (better, worse), margin in zip(pairs, margins, strict=True):
        assert groups[better] == groups[worse]
        assert margin == pytest.approx(worth[better] - worth[worse], rel=1e-5)
        assert margin > gap - 1e-6
    expected = sum(
        abs(worth[a] - worth[b]) > gap for a in range(len(worth)) for b in range(a) if groups[a] == groups[b]
    )
    assert len(pairs) == expected


def test_pairs_are_made_of_a_rating_where_asked(configured):
    found = load(configured(pairs="", pairs_from="goodness", min_gap=1.0))
    ratings = dict(zip(found.train.rated.tolist(), found.train.ratings[:, 0], strict=True))
    assert len(found.train.pairs)
    assert all(ratings[a] - ratings[b] > 1.0 for a, b in found.train.pairs.tolist())
    with pytest.raises(UserError, match="pairs_from=nothing: no row"):
        load(configured(pairs_from="nothing"))


def test_a_chat_counts_by_its_last_turn(tmp_path, configured):
    pairs, _ = rows()
    turns = lambda text: [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]  # noqa: E731
    chats = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": turns(row["chosen"]),
            "rejected": turns(row["rejected"]),
        }
        for row in pairs
    ]
    found = load(configured(pairs=write(tmp_path / "chat.jsonl", chats)))
    assert found.texts[0] == ([{"role": "user", "content": pairs[0]["prompt"]}], pairs[0]["chosen"])
    assert json.dumps(found.texts[0][0])
