"""From causes to a plan."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.config import build
from raylm.errors import UserError
from raylm.ilp import interventions, lineage, outcome
from raylm.ilp.causes import Attribution, Signals
from raylm.ilp.config import ProbeConfig, RepairConfig
from raylm.ilp.items import make
from raylm.ilp.measure import Diagnosis, Probed
from raylm.ilp.neighbours import Pair
from raylm.llm import models
from raylm.storage import Store
from raylm.train.repair import RepairPlan, dump


def probed(name, verdict="unlearned"):
    return Probed(id=name, choice=0.0, options=4, written=verdict == "learned", response="x", finished=True, reason="",
                  nll=1.0, least=-1.0, base_nll=2.0, improved=True, shortcut=False, verdict=verdict)  # fmt: skip


def diagnosis(answers, causes, pairs, losses=None):
    rows = [
        {"id": name, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]}
        for name, answer in answers.items()
    ]
    items = make(rows, ProbeConfig())
    return Diagnosis(
        everyone=items,
        items=items,
        probed={name: probed(name, "unlearned" if name in causes else "learned") for name in answers},
        signals={name: Signals(id=name) for name in causes},
        causes={name: Attribution(cause, 0.8, cause, (cause,), ()) for name, cause in causes.items()},
        pairs=pairs,
        floor=0.24,
        longest=0.0,
        base_scores={name: {"nll": value} for name, value in (losses or {}).items()},
    )


def test_the_majority_of_samples_decides_which_answer_is_wrong():
    pairs = [Pair(0, 1, 0.9, True), Pair(0, 2, 0.9, False), Pair(1, 2, 0.9, False)]
    found = diagnosis({"a": "red", "b": "red", "c": "blue"}, {"a": "inconsistency"}, pairs, {"a": 9, "b": 9, "c": 1})
    plan = interventions.build(found, RepairConfig(), "digest")
    assert (plan.drop, plan.separate) == (("c",), ())
    assert "contradicts" in plan.reasons["c"]


def test_the_base_model_decides_between_two_and_undecided_ones_are_kept_apart():
    for losses, drop, separate in (({"a": 1.0, "b": 3.0}, ("b",), ()), ({"a": 1.0, "b": 1.01}, (), (("a", "b"),))):
        found = diagnosis({"a": "red", "b": "blue"}, {"b": "inconsistency"}, [Pair(0, 1, 0.9, False)], losses)
        plan = interventions.build(found, RepairConfig(), "digest")
        assert (plan.drop, plan.separate) == (drop, separate)


def test_every_cause_gets_what_the_method_names_for_it():
    causes = {"a": "prerequisite", "b": "conflict", "c": "forgotten", "d": "underfit", "e": "unexplained"}
    found = diagnosis(dict.fromkeys(causes, "x"), causes, [])
    plan = interventions.build(found, RepairConfig(upweight=3.0, others_keep=0.1), "digest", "documents.jsonl")
    assert plan.upweight == {"b": 3.0, "d": 3.0}
    assert (plan.shuffle, plan.replay, plan.extra.epochs, plan.documents.path) == (True, None, 1.0, "documents.jsonl")
    kept = interventions.build(found, RepairConfig(shuffle=False), "digest")
    assert (kept.shuffle, kept.replay.ids, kept.documents) == (False, ("c",), None)
    assert build(RepairPlan, json.loads(dump(plan))) == plan


@given(st.integers(1, 60), st.integers(0, 60), st.floats(0.05, 1), st.floats(1.1, 20))
def test_the_others_keep_their_share_of_the_steps(failed, others, keep, most):
    names = [str(n) for n in range(failed + others)]
    found = diagnosis(dict.fromkeys(names, "x"), dict.fromkeys(names[:failed], "underfit"), [])
    weights = interventions.build(found, RepairConfig(upweight=most, others_keep=keep), "digest").upweight
    weight = next(iter(weights.values()), 1.0)
    assert set(weights) in (set(), set(names[:failed]))
    assert 1 <= weight <= most + 1e-3
    before, now = others / (failed + others), others / (failed * weight + others)
    assert now >= keep * before * 0.999
    assert weight > most - 2e-3 or now <= keep * before * 1.001 or not others


def test_a_contradiction_among_learned_samples_alone_changes_nothing():
    found = diagnosis({"a": "red", "b": "blue"}, {}, [Pair(0, 1, 0.9, False)], {"a": 1.0, "b": 3.0})
    assert interventions.build(found, RepairConfig(), "").drop == ()


def test_flagged_samples_come_out_as_they_came(tmp_path):
    rows = [{"id": str(n), "messages": [], "extra": n, "task_name": "t"} for n in range(3)]
    store = Store(str(tmp_path))
    assert outcome.export(store, rows, {"1"}, "data/chains.jsonl") == "flagged.jsonl"
    assert json.loads((tmp_path / "flagged.jsonl").read_text()) == {"id": "1", "messages": [], "extra": 1}
    assert outcome.export(store, rows, {"1", "2"}, "runs/synthesize") == "flagged.parquet"
    assert store.read_table("flagged.parquet").num_rows == 2
    outcome.export(store, rows, set(), "data/chains.jsonl")
    assert (tmp_path / "flagged.jsonl").read_text() == ""


def saved(path, seed, **changes):
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    micro = models.resolve("micro").path
    settings = AutoConfig.from_pretrained(micro)
    for name, value in changes.items():
        setattr(settings, name, value)
    torch.manual_seed(seed)
    LlamaForCausalLM(settings).save_pretrained(path)
    return path


def test_models_are_told_apart_by_shape_and_by_weights(tmp_path):
    one, other = (saved(tmp_path / str(seed), seed) for seed in (1, 2))
    assert lineage.compare(one, one).identical
    assert "not tuned" in lineage.compare(one, one).warning
    stranger = lineage.compare(one, other)
    assert abs(stranger.cosine) < 0.1
    assert "unrelated models" in stranger.warning
    larger = saved(tmp_path / "larger", 1, vocab_size=300)
    with pytest.raises(
        UserError, match=r"model.embed_tokens.weight is \[\d+, 64\] in the model and \[300, 64\] in the base"
    ):
        lineage.compare(one, larger)


def test_a_model_that_was_tuned_a_little_is_a_descendant(tmp_path):
    import torch

    one = saved(tmp_path / "one", 1)
    model = models.load_model(one, torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.add_(0.01 * weight.std() * torch.randn_like(weight))
    model.save_pretrained(tmp_path / "two")
    kin = lineage.compare(tmp_path / "two", one)
    assert kin.cosine > 0.99
    assert not kin.warning
