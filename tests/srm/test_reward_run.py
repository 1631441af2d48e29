"""Training in one process: it learns, resumes to the bit, is cross-fitted, and retrains one branch alone."""

import numpy as np
import pytest
import torch

from raylm.errors import UserError
from raylm.srm.model import RewardModel
from raylm.srm.run import Run
from raylm.train import checkpoint
from tests.srm.conftest import rows, write


def nothing(*_):
    pass


def trained(config, model, **options):
    run = Run(config, model, **options)
    run.train(nothing, nothing)
    return run


def save(folder, state):
    folder.mkdir()
    checkpoint.save(folder, 0, 1, state)


def test_it_learns_and_is_saved_whole(encoder, configured, tmp_path):
    run = trained(configured(epochs=12), encoder)
    log = run.finish(tmp_path / "model")
    assert log["figures"]["pair_accuracy"] > 0.8
    assert log["figures"]["agreement"]["goodness"]["spearman"] > 0.7
    assert log["counts"]["train"]["pairs"] + log["counts"]["dev"]["pairs"] == 40
    model = RewardModel.load(tmp_path / "model")
    places = run.data.dev.pairs.flatten()
    expected, _ = run.fused(places, run.values[torch.from_numpy(places)])
    assert [each.score for each in model.score_batch([run.data.texts[n] for n in places])] == pytest.approx(
        expected, abs=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "stop"),
    [({}, 9), ({"epochs": 2, "tune": True, "lr": 1e-3}, 9), ({"fusion": {"kind": "text"}}, 21), ({}, 33)],
)
def test_a_resumed_run_is_the_run(encoder, configured, tmp_path, changes, stop):
    config = configured(checkpoint_every=3, max_length=96, **changes)
    whole = Run(config, encoder)
    whole.train(nothing, lambda step, state: save(tmp_path / f"step-{step}", state))
    made = sorted(int(folder.name.partition("-")[2]) for folder in tmp_path.glob("step-*"))
    first = max(step for step in made if step <= stop)
    resumed = Run(config, encoder, saved=tmp_path / f"step-{first}")
    assert resumed.first == first
    resumed.train(nothing, nothing)
    assert resumed.rows == whole.rows
    assert resumed.looks == whole.looks
    for name, value in whole.structure.state_dict().items():
        assert torch.equal(value, resumed.structure.state_dict()[name]), name


def test_a_branch_never_scores_for_the_fusion_what_it_was_trained_on(encoder, configured):
    # Coins cannot be learned: who has seen them remembers them, who has not is no better than chance.
    branches = [{"name": "coin", "column": "coin", "kind": "adapter"}]
    run = trained(configured(epochs=25, head_lr=0.05, branches=branches), encoder)
    places, coins = run.data.train.rated, run.data.train.ratings[:, 0]
    unseen = run.values[torch.from_numpy(places), 0].numpy()
    final = run.phases[-2]  # it sees all of them
    run._begin(run.phases.index(final), final)
    for step in range(final.first, final.end):
        run.step(step, final)
    seen = run.material.values(places)[:, 0].numpy()
    assert np.corrcoef(seen, coins)[0, 1] > 0.5
    assert np.corrcoef(unseen, coins)[0, 1] < 0.3
    assert np.isfinite(unseen).all()


def test_ranks_share_out_the_same_batches(encoder, configured):
    run = Run(configured(), encoder)
    for phase in run.phases:
        for step in range(phase.first, phase.end):
            pairs, rated = phase.batch(step, 0)
            assert len(pairs) <= 16
        seen = sorted(n for step in range(phase.first, phase.first + phase.pieces) for n in phase.batch(step, 0)[0])
        assert seen == list(range(len(phase.part.pairs)))
    whole = run.phases[0]
    pairs, rated = whole.batch(0, 0)
    counts = len(pairs), len(rated)
    run._begin(0, whole)
    parts = [run._loss(whole, whole.part, (pairs[rank::2], rated[rank::2]), counts, 0).item() for rank in range(2)]
    assert sum(parts) == pytest.approx(run._loss(whole, whole.part, (pairs, rated), counts, 0).item(), rel=1e-5)


def test_one_branch_is_trained_anew_and_only_its_dimension_moves(encoder, configured, tmp_path):
    base = trained(configured(), encoder)
    base.finish(tmp_path / "base")
    turned = [{**row, "scores": {**row["scores"], "goodness": 10 - row["scores"]["goodness"]}} for row in rows()[1]]
    ratings = write(tmp_path / "turned.jsonl", turned)
    config = configured(ratings=ratings, base=str(tmp_path / "base"), retrain=["goodness"], epochs=8)
    run = trained(config, str(tmp_path / "base"))
    run.finish(tmp_path / "new")
    before, after = (RewardModel.load(tmp_path / name) for name in ("base", "new"))
    old, new = before.structure.state_dict(), after.structure.state_dict()
    moved = {name for name, value in old.items() if not torch.equal(value, new[name])}
    assert moved and all(name.startswith("trained.goodness.") for name in moved)  # noqa: PT018 - one fact
    texts = base.data.texts[:20]
    for one, two in zip(before.score_batch(texts), after.score_batch(texts), strict=True):
        for name in before.dimensions:
            same = one.dimensions[name] == two.dimensions[name] and one.attribution[name] == two.attribution[name]
            assert same == (name != "goodness")
    with pytest.raises(
        UserError, match="retrain=length: the base has no such head or adapter; it has goodness, coin, quality"
    ):
        Run(configured(base=str(tmp_path / "base"), retrain=["length"]), str(tmp_path / "base"))


def test_a_tuned_backbone_moves_and_its_embeddings_stay(encoder, configured):
    run = trained(configured(tune=True, epochs=1, lr=1e-3), encoder)
    state = run.structure.state_dict()
    moved = {name for name, value in run.start.items() if not torch.equal(value, state[name])}
    assert any("attention" in name for name in moved)
    assert not any("word_embeddings" in name or "pooler" in name for name in moved)


def test_features_are_computed_once_and_may_be_given(encoder, configured, tmp_path):
    config = configured(epochs=1)
    first = Run(config, encoder, folder=tmp_path / "features")
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "features").iterdir()}
    assert files
    second = Run(config, encoder, folder=tmp_path / "features")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "features").iterdir()} == files
    given = Run(config, encoder, known=lambda texts: first.material.features)
    for other in (second, given):
        assert torch.equal(first.material.features.raw, other.material.features.raw)


def tool(name, **more):
    return {"branches": [{"name": name, "kind": "tool", **more}]}


def own(name):
    return tool(name, tool=f"tests.srm.test_reward_run:{name}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"max_length": 32, "max_cut_share": 0.0, "branches": [{"name": "quality"}]},
            "responses do not fit into max_length=32",
        ),
        (tool("arithmetic"), "branch arithmetic has nothing to say of any of the training"),
        (own("one"), "is code that this model names"),
        ({**own("one"), "own_tools": True}, "branch one says 1 of all training texts"),
        ({**own("ill"), "own_tools": True}, "branch ill fails on .*ValueError: ill"),
        (tool("retrieval"), "a retrieval branch needs index="),
    ],
)
def test_what_would_fail_later_is_refused_before_training(encoder, configured, tmp_path, changes, says):
    pairs, _ = rows()
    long = [{**row, "chosen": row["chosen"] + " good" * 40} for row in pairs]
    with pytest.raises(UserError, match=says):
        Run(configured(pairs=write(tmp_path / "long.jsonl", long), ratings="", **changes), encoder)


def one(prompt, response):
    return 1.0


def ill(prompt, response):
    raise ValueError("ill")


def test_a_loss_that_is_not_finite_names_its_texts(encoder, configured):
    run = Run(configured(), encoder)
    run.start["trained.quality.out.weight"].fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"step 1 \(branches without fold 1\): loss is nan; among its texts"):
        run.train(nothing, nothing)


def test_margins_push_scores_further_apart(encoder, configured, tmp_path):
    pairs, _ = rows()
    wide = write(tmp_path / "wide.jsonl", [{**row, "margin": 3.0} for row in pairs])
    gaps = []
    for margin in (0.0, 1.0):
        run = trained(configured(pairs=wide, loss={"margin": margin}, branches=[{"name": "quality"}]), encoder)
        values = run.values[torch.from_numpy(run.data.train.pairs.flatten()), 0].view(-1, 2)
        gaps.append(float((values[:, 0] - values[:, 1]).mean()))
    assert gaps[1] > gaps[0]
