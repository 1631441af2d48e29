"""Side texts: every branch writes through its own adapter, all in one batch, and its number counts."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from raylm.errors import UserError
from raylm.llm import chat, models
from raylm.srm import backbone
from raylm.srm.adapters import AdapterSettings, train_adapter
from raylm.srm.branches import TextBranch
from raylm.srm.config import BranchConfig, FusionConfig, WriterConfig
from raylm.srm.model import RewardModel
from raylm.srm.sidetext import AdapterWriter
from raylm.srm.structure import Structure

WRITER = WriterConfig(model="micro", max_tokens=8, context=512)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Directories of two random adapters of the micro model."""
    paths = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = models.load_model(models.resolve("micro").path, torch.float32)
        adapted = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"]))
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(value)  # random, and large enough to change every word
        paths.append(tmp_path_factory.mktemp("adapter"))
        adapted.save_pretrained(paths[-1])
    return [str(path) for path in paths]


def specs(adapters):
    return [
        BranchConfig(name=name, kind="text", column=name, low=0, high=9, adapter=adapter)
        for name, adapter in zip(("facts", "style", "plain"), (*adapters, ""), strict=True)
    ]


def test_a_mixed_batch_writes_what_each_adapter_writes_alone(adapters):
    own = specs(adapters)
    prompts, responses = ["Why?", "How are you today?"], ["Because.", "Fine."]
    together = AdapterWriter(WRITER, own).write(own, prompts, responses)
    assert set(together) == {"facts", "style", "plain"}
    for spec in own:
        alone = AdapterWriter(WRITER.model_copy(update={"batch_size": 1}), [spec]).write([spec], prompts, responses)
        assert alone == {spec.name: together[spec.name]}
    assert together["facts"] != together["plain"]
    assert together["facts"] != together["style"]


def test_a_long_prompt_loses_its_middle_and_a_long_response_is_refused(adapters):
    own = specs(adapters)[2:]
    writer = AdapterWriter(WRITER, own)
    asked = writer.ask(own[0], f"begin {'x' * 2000} end", "short")
    assert len(chat.prompt_ids(writer.tokenizer, asked)) <= 512 - 8
    for word in ("begin", "end\n", "short"):
        assert word in asked[0]["content"]
    with pytest.raises(UserError, match="branch plain: a response alone has more than writer"):
        writer.ask(own[0], "why", "x" * 2000)


@pytest.mark.parametrize(
    ("text", "value"), [("4 of 5", 4.0), ("rather 2.5", 2.5), ("12, so 3", 3.0), ("none", None), ("-1", None)]
)
def test_the_first_number_in_the_range_counts(text, value):
    branch = TextBranch(BranchConfig(name="facts", kind="text", column="facts", low=0, high=5))
    found = branch.parse(text)
    assert found == value if value is not None else found != found  # noqa: PLR0124 - not a number


def test_a_model_with_text_branches_is_saved_and_writes_again(adapters, encoder, tmp_path):
    own = [BranchConfig(name="quality"), *specs(adapters)]
    structure = Structure(backbone.load(encoder, max_length=128), own, FusionConfig(kind="text"))
    structure.set_writer(WRITER)
    torch.nn.init.normal_(structure.fusion.head.weight)
    model = RewardModel(structure, "texts", "none", {"writer": WRITER.model_dump(mode="json")})
    model.save(tmp_path)
    first, second = (each.score("one red", ["two", "three blue"]) for each in (model, RewardModel.load(tmp_path)))
    assert first == second


def test_what_is_no_adapter_is_refused(tmp_path):
    spec = BranchConfig(name="facts", kind="text", column="facts", adapter=str(tmp_path))
    with pytest.raises(UserError, match="is no LoRA adapter"):
        AdapterWriter(WRITER, [spec])


def test_an_adapter_learns_its_texts(tmp_path):
    spec = BranchConfig(name="facts", kind="text", column="facts", low=1, high=5)
    examples = [("Why?", response, text) for response, text in (("aaaa", "1"), ("bbbb", "5"))]
    settings = AdapterSettings(targets=("q_proj", "v_proj", "up_proj", "down_proj"), steps=20, batch_size=2, lr=1e-2)
    losses = train_adapter(WRITER, spec, examples, tmp_path, settings)
    assert losses[-1] < losses[0] - 0.2
    own = [spec.model_copy(update={"adapter": str(tmp_path)})]
    assert len(AdapterWriter(WRITER, own).write(own, ["Why?"], ["aaaa"])["facts"]) == 1
    assert train_adapter(WRITER, spec, examples, tmp_path / "again", settings) == losses
    with pytest.raises(UserError, match="no examples"):
        train_adapter(WRITER, spec, [], tmp_path)
    with pytest.raises(UserError, match=r"has more than writer\.max_tokens=8 tokens"):
        train_adapter(WRITER, spec, [("Why?", "a", "far too long a text")], tmp_path)
