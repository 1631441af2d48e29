"""Fusions: attributions that add up, absent branches at their reference, weights that keep their sign."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raylm.srm.branches import ABSENT, Inputs
from raylm.srm.config import BranchConfig, FusionConfig
from raylm.srm.fusion import AdditiveFusion, TextFusion

SPECS = (
    BranchConfig(name="helpful"),
    BranchConfig(name="length", kind="tool"),
    BranchConfig(name="rated", column="rated", low=1, high=5),
)


def inputs(rows, contexts=None):
    contexts = torch.zeros(rows, 4) if contexts is None else contexts
    return Inputs(["p"] * rows, ["r"] * rows, torch.zeros(rows, 0), contexts)


def additive(seed=0, **changes):
    torch.manual_seed(seed)
    fusion = AdditiveFusion(SPECS, FusionConfig(**changes), 4)
    for param in fusion.parameters():
        torch.nn.init.normal_(param)
    fusion.centre.normal_()
    fusion.spread.uniform_(0.5, 2.0)
    fusion.shift.fill_(0.3)
    fusion.scale.fill_(1.7)
    return fusion


def numbers(low, high):
    return st.lists(st.floats(low, high, width=32), min_size=6, max_size=6)


@given(numbers(-3, 3), st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 5))
def test_score_is_bias_plus_attributions_and_an_absent_branch_has_none(values, absent, seed):
    fusion = additive(seed)
    table = torch.tensor(values).view(2, 3).masked_fill(torch.tensor(absent).view(2, 3), torch.nan)
    with torch.no_grad():
        found = fusion(inputs(2, torch.randn(2, 4)), table)
    torch.testing.assert_close(found.score, fusion.offset + found.attribution.sum(1))
    assert (found.attribution[torch.isnan(table)] == 0).all()


@given(st.integers(0, 20))
def test_an_attribution_is_what_leaving_the_branch_out_costs(seed):
    fusion = additive(seed)
    values, context = torch.randn(3, 3), torch.randn(3, 4)
    with torch.no_grad():
        whole = fusion(inputs(3, context), values)
        for place in range(3):
            without = values.clone()
            without[:, place] = torch.nan
            loss = whole.score - fusion(inputs(3, context), without).score
            torch.testing.assert_close(loss, whole.attribution[:, place], atol=1e-5, rtol=1e-4)


@given(st.integers(0, 20), st.floats(0.1, 3))
def test_more_of_a_rising_branch_never_lowers_the_score(seed, more):
    fusion = additive(seed)
    values, context = torch.randn(4, 3), torch.randn(4, 4)
    with torch.no_grad():
        before = fusion(inputs(4, context), values).score
        for place in (0, 2):  # not the tool
            raised = values.clone()
            raised[:, place] += more
            assert (fusion(inputs(4, context), raised).score >= before - 1e-5).all()


def test_weights_depend_on_the_prompt_alone():
    fusion = additive()
    context = torch.randn(1, 4).expand(5, 4)
    weights = fusion.weights(context)
    assert torch.equal(weights[0], weights[4])
    assert not torch.equal(fusion.weights(torch.randn(1, 4)), weights[:1])
    assert additive(gate="constant").gate is None


def text_fusion():
    def reader(prompts, notes, responses):
        return torch.tensor(
            [[float(note.count(ABSENT)), float(len(response))] for note, response in zip(notes, responses, strict=True)]
        )

    fusion = TextFusion(SPECS, FusionConfig(kind="text", branch_tokens=4), 2, reader)
    torch.nn.init.ones_(fusion.head.weight)
    return fusion


def test_a_text_fusion_reads_every_branch_and_attributes_by_leaving_out():
    fusion = text_fusion()
    values = torch.tensor([[1.0, torch.nan, 4.2]])
    assert fusion.notes(inputs(1), values) == ["helpful: 1.00\nlength: N/A\nrated: 4.20 (1 to 5)"]
    with torch.no_grad():
        found = fusion(inputs(1), values)
        assert float(found.score) == pytest.approx(2.0)  # one absent branch, one letter
        assert found.attribution.tolist() == [[-1.0, 0.0, -1.0]]
        assert fusion(inputs(1), values, explain=False).attribution.abs().sum() == 0


def test_side_texts_are_shown_and_cut_to_their_share():
    spec = BranchConfig(name="facts", kind="text", column="facts", low=1, high=5)
    fusion = TextFusion([spec], FusionConfig(kind="text", branch_tokens=4), 2, lambda *_: torch.zeros(1, 2))
    own = Inputs(["p"], ["r"], torch.zeros(1, 0), torch.zeros(1, 4), {"facts": ["one two three four five six"]})
    assert fusion.notes(own, torch.tensor([[3.0]])) == ["facts: one two three four"]
