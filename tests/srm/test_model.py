"""The public face: scores that do not depend on their company, add up, and say what went wrong."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from raylm.errors import UserError
from raylm.llm import models
from raylm.srm import backbone
from raylm.srm.config import BranchConfig, FusionConfig
from raylm.srm.model import RewardModel, is_reward_model
from raylm.srm.structure import Structure

SPECS = (
    BranchConfig(name="quality"),
    BranchConfig(name="rated", column="rated", kind="adapter", rank=4, low=1, high=5),
    BranchConfig(name="arithmetic", kind="tool"),
    BranchConfig(name="repetition", kind="tool"),
)
ITEMS = [
    (f"write about {word} {n}", " ".join(["one two", word] * (n % 7 + 1)))
    for n, word in enumerate(["red", "blue"] * 16)
]


def model_of(path, specs=SPECS, max_length=96, **fusion):
    torch.manual_seed(0)
    structure = Structure(backbone.load(path, max_length=max_length), specs, FusionConfig(**fusion), own_tools=True)
    for name, value in structure.named_parameters():
        if not name.startswith("backbone."):
            torch.nn.init.normal_(value, std=0.3)
    structure.center.normal_(std=0.1)
    return RewardModel(structure, "test", "none")


@pytest.fixture(scope="module", params=["encoder", "micro"])
def place(request, encoder):
    return encoder if request.param == "encoder" else models.resolve("micro").path


@pytest.fixture(scope="module")
def model(place, encoder):
    return model_of(place, max_length=96 if place == encoder else 256)


def test_a_score_does_not_depend_on_its_company_or_the_batch(model):
    whole = model.score_batch(ITEMS)
    alone = [model.score_batch([item])[0] for item in ITEMS]
    small = model.score_batch(ITEMS[::-1], batch=5)[::-1]
    for other in (alone, small):
        for one, two in zip(whole, other, strict=True):
            assert one.score == pytest.approx(two.score, abs=1e-5)
            assert one.dimensions == pytest.approx(two.dimensions, abs=1e-5)
    assert len({round(said.score, 6) for said in whole}) > 8


def test_a_score_is_the_bias_and_its_attributions(model):
    for said in model.score_batch(ITEMS):
        assert said.score == pytest.approx(model.bias + sum(said.attribution.values()), abs=1e-12)
        assert set(said.attribution) == set(model.dimensions)
        assert said.flags == ("absent:arithmetic",)
        assert "arithmetic" not in said.dimensions
        assert said.attribution["arithmetic"] == 0


def test_responses_to_one_prompt_are_scored_as_pairs(model):
    prompt, responses = ITEMS[0][0], ["one two", "two two two"]
    said = model.score(prompt, responses)
    assert [each.score for each in said] == [each.score for each in model.score_batch([(prompt, r) for r in responses])]
    assert model.probability(0.0) == 0.5
    assert model.probability(1e9) <= 1.0


def test_what_is_saved_scores_the_same_and_is_named_by_its_content(model, tmp_path):
    model.save(tmp_path / "a")
    loaded = RewardModel.load(tmp_path / "a")
    assert [each.score for each in loaded.score_batch(ITEMS)] == [each.score for each in model.score_batch(ITEMS)]
    assert is_reward_model(tmp_path / "a")
    assert not is_reward_model(tmp_path)
    loaded.structure.fusion.bias.data += 1
    loaded.save(tmp_path / "b")
    again = RewardModel.load(tmp_path / "b")
    assert again.revision != loaded.revision == RewardModel.load(tmp_path / "a").revision
    assert (loaded.name, loaded.dimensions) == ("test", ("quality", "rated", "arithmetic", "repetition"))


def test_texts_beyond_the_context_are_flagged(model):
    long_prompt, long_response = model.score_batch([("red " * 400, "one two"), ("red", "one two " * 300)])
    assert long_prompt.truncated and "prompt_truncated" in long_prompt.flags  # noqa: PT018 - one fact
    assert "response_truncated" not in long_prompt.flags
    assert long_response.truncated and "response_truncated" in long_response.flags  # noqa: PT018
    assert not model.score("red", ["one"])[0].truncated


def test_empty_texts_are_refused_by_their_place(model):
    with pytest.raises(UserError, match="item 1: the response is empty"):
        model.score("red", ["one", " "])
    with pytest.raises(UserError, match="item 0: the prompt is empty"):
        model.score("", ["one"])
    assert model.score_batch([]) == []


class Broken:
    """A tool that fails on some texts and says nonsense of others."""

    def __call__(self, prompt, response):
        if "green" in response:
            raise RuntimeError("no green")
        return math.inf if "bad" in response else 1.0


def test_a_branch_that_fails_costs_its_row_only_that_branch(encoder):
    own = BranchConfig(name="own", kind="tool", tool="tests.srm.test_model:Broken")
    model = model_of(encoder, (SPECS[0], own))
    fine, raised, infinite = model.score("write", ["one red", "one green", "one bad"])
    assert fine.flags == ()
    assert raised.flags == infinite.flags == ("failed:own",)
    assert raised.attribution["own"] == 0
    assert raised.score == pytest.approx(model.bias + raised.attribution["quality"])
    assert fine.score == pytest.approx(model.score("write", ["one red"])[0].score, abs=1e-6)


def test_features_that_are_no_numbers_fail_the_heads_and_not_the_score(encoder):
    model = model_of(encoder)
    model.structure.backbone.model.encoder.layer[0].output.dense.bias.data[0] = torch.nan
    said = model.score("write", ["one red"])[0]
    assert set(said.flags) == {"failed:quality", "failed:rated", "absent:arithmetic"}
    assert math.isfinite(said.score)


def test_tools_of_ones_own_are_imported_only_where_asked(encoder, tmp_path):
    own = BranchConfig(name="own", kind="tool", tool="tests.srm.test_model:Broken")
    model_of(encoder, (own,)).save(tmp_path)
    with pytest.raises(UserError, match="is code that this model names"):
        RewardModel.load(tmp_path)
    assert RewardModel.load(tmp_path, own_tools=True).score("write", ["one"])[0].dimensions == {"own": 1.0}
    with pytest.raises(UserError, match="cannot be imported"):
        model_of(encoder, (own.model_copy(update={"tool": "tests.srm.test_model:Missing"}),))
    with pytest.raises(UserError, match="no tool 'wit'; there are relevance"):
        model_of(encoder, (BranchConfig(name="wit", kind="tool"),))


def test_a_text_fusion_is_saved_whole(encoder, tmp_path):
    model = model_of(encoder, max_length=128, kind="text")
    model.save(tmp_path)
    loaded = RewardModel.load(tmp_path)
    first, second = (each.score_batch(ITEMS[:6]) for each in (model, loaded))
    assert first == second
    assert any(any(said.attribution.values()) for said in first)
    assert [each.score for each in loaded.score_batch(ITEMS[:6], explain=False)] == pytest.approx(
        [s.score for s in first]
    )


@pytest.mark.parametrize("harm", ["missing", "format", "shape", "json"])
def test_a_damaged_directory_is_refused(encoder, tmp_path, harm):
    model_of(encoder).save(tmp_path)
    settings = json.loads((tmp_path / "srm.json").read_text())
    if harm == "missing":
        (tmp_path / "srm.safetensors").unlink()
    elif harm == "format":
        (tmp_path / "srm.json").write_text(json.dumps({**settings, "format": 99}))
    elif harm == "json":
        (tmp_path / "srm.json").write_text("{")
    else:
        weights = load_file(tmp_path / "srm.safetensors")
        save_file(
            {name: value for name, value in weights.items() if "quality" not in name}, tmp_path / "srm.safetensors"
        )
    said = {"missing": "is missing", "format": "format 99", "json": "not valid JSON", "shape": "do not fit"}[harm]
    with pytest.raises(UserError, match=said):
        RewardModel.load(tmp_path)
