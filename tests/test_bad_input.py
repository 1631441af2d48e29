"""What is wrong with the input is one line with file, line or field and a remedy, exit code 2, before any work."""

import json
import shutil

import pytest

from raylm import cli
from raylm.llm import models

ROW = {"id": "a", "question": "What is 2 + 3?", "answer": "5"}


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """Ray may not even start."""

    def started():
        raise AssertionError("Ray was started for input that could have been refused")

    monkeypatch.setattr("raylm.units.ensure_ray", started)


@pytest.fixture
def refused(capsys):
    """Runs a verb and returns its one line of error."""

    def run(verb, *args):
        capsys.readouterr()
        assert cli.run_verb(verb, [str(arg) for arg in args]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


@pytest.fixture
def explore(refused, tmp_path):
    """Runs explore over rows and returns its error."""

    def run(rows, *overrides, out=tmp_path / "out"):
        file = tmp_path / "problems.jsonl"
        file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        source = f"problems=[{{name: mine, kind: dataset, path: {file}, checker: number}}]"
        return refused("explore", source, "engine.model=micro", f"out={out}", *overrides)

    return run


@pytest.fixture
def broken_model(tmp_path):
    """Copies the micro model without some of its files."""

    def copy(*without):
        target = tmp_path / "model"
        shutil.copytree(models.resolve("micro").path, target, ignore=shutil.ignore_patterns(*without))
        return target

    return copy


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([ROW, '{"id": "b", "question": \n'], ["problems.jsonl:2", "JSON"]),
        ([ROW, {"id": "b", "question": "What is 1 + 1?"}], ["problems.jsonl:2", "answer"]),
        ([ROW, {**ROW, "id": "b", "question": " "}], ["problems.jsonl:2", "question"]),
        ([], ["problems.jsonl has 0 rows", "check path"]),
        ([ROW, {**ROW, "question": "What is 4 + 1?"}], ["'a'", "problems.jsonl"]),
        ([ROW, {**ROW, "id": "b", "answer": "five"}], ["five", "checker"]),
    ],
)
def test_bad_rows(explore, rows, words):
    line = explore(rows)
    for word in words:
        assert word in line


def test_a_question_longer_than_the_context(explore):
    line = explore([{**ROW, "question": "one and " * 200}], "engine.context=512", "search.max_tokens=64")
    assert "engine.context" in line
    assert "problem mine-a with" in line


def test_an_out_directory_that_cannot_be_written(explore):
    assert "/proc/nowhere: cannot write here" in explore([ROW], out="/proc/nowhere")


def test_a_remote_path_without_its_package(explore, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    line = explore([ROW], out="s3://bucket/out")
    assert "s3://bucket/out" in line
    assert "install" in line.lower()


def test_a_typo_in_a_config_file(refused, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("search: {ronds: 3}\nproblems: [{name: chain_sum, limit: 3}]\n")
    line = refused("explore", file)
    assert "unknown key search.ronds" in line
    assert "did you mean search.rounds?" in line


@pytest.mark.parametrize("verb", ["explore", "evaluate", "finetune", "pipeline"])
@pytest.mark.parametrize(
    ("without", "words"),
    [
        (("tokenizer*", "*.jinja"), "no tokenizer files; save the model's tokenizer there"),
        (("*.jinja",), "no chat template; add chat_template.jinja"),
        (("*.safetensors",), "no *.safetensors weights"),
        (("config.json",), "no config.json"),
    ],
)
def test_a_model_directory_that_lacks_something(  # noqa: PLR0917
    refused, broken_model, tmp_path, verb, without, words
):
    model, sums = broken_model(*without), "{name: chain_sum, limit: 3}"
    (tmp_path / "chains.jsonl").write_text(json.dumps({"messages": [
        {"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "Answer: 5"}]}) + "\n")  # fmt: skip
    arguments = {
        "explore": [f"problems=[{sums}]", f"engine.model={model}"],
        "evaluate": [f"suites={{s: [{sums}]}}", f"model={model}"],
        "finetune": [f"chains={tmp_path / 'chains.jsonl'}", f"model={model}"],
        "pipeline": [
            f"suites={{s: [{sums}]}}", "explore.problems=[{name: other, task: chain_sum, limit: 3, seed: 5}]",
            f"engine.model={model}",
        ],
    }  # fmt: skip
    assert words in refused(verb, *arguments[verb], f"out={tmp_path / 'out'}")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"messages": [}\n', "chains.jsonl:2"),
        ('{"text": "no messages"}\n', "chains.jsonl:2: no field 'messages'"),
        ('{"messages": [{"role": "user", "content": "2 + 3?"}]}\n', "the last message must be the assistant's"),
    ],
)
def test_bad_chains(refused, tmp_path, row, words):
    fine = {"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "Answer: 5"}]}
    (tmp_path / "chains.jsonl").write_text(json.dumps(fine) + "\n" + row)
    assert words in refused("finetune", f"chains={tmp_path / 'chains.jsonl'}", "model=micro", f"out={tmp_path / 'out'}")


def test_an_artefact_of_another_stage(refused, tmp_path):
    assert "no finished trees here" in refused("synthesize", f"trees={tmp_path}", f"out={tmp_path / 'out'}")


@pytest.fixture
def finetune(refused, tmp_path):
    """Runs finetune on forty chains and returns its error."""
    rows = [
        {"messages": [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": f"Answer: {n + 1}"}]}
        for n in range(40)
    ]
    chains = tmp_path / "chains.jsonl"
    chains.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*overrides):
        return refused("finetune", f"chains={chains}", "model=micro", f"out={tmp_path / 'out'}", *overrides)

    return run


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("isolation.refresh_every=50", "isolation.refresh_every=50 is more than the run's 8 steps"),
        ("isolation.warmup=8", "the first mask would come at the end of a run of 8 steps"),
        ("isolation.include=[model.layer.*]", "no trainable tensor is called 'model.layer.*'; names are like"),
        ("isolation.exclude=['*']", "leave no tensor to protect"),
        ("isolation={source: file, mask_file: nowhere.safetensors}", "nowhere.safetensors: no such file"),
        ("isolation={source: file}", "source=file and mask_file go together"),
        ("isolation.warmup=2.5", "neither a number of steps nor a share below 1"),
        ("isolation={scope: per_task}", "needs tasks"),
        ("watch.chains=nowhere.jsonl", "nowhere.jsonl: no such file; give a JSONL or Parquet file of chats, or"),
        ("max_length=8", "chains are longer than max_length=8"),
        ("tasks=[{name: a, chains: nowhere.jsonl}]", "nowhere.jsonl"),
    ],
)
def test_training_that_does_not_fit(finetune, override, words):
    assert words in finetune(override)


def test_a_mask_of_another_model(finetune, tmp_path):
    import torch

    from raylm.train.isolation import Isolation, IsolationConfig, save_mask

    model = torch.nn.Linear(3, 4)
    isolation = Isolation(IsolationConfig(choose="random", warmup=1), model, steps=5)
    isolation.advance()
    save_mask(isolation, tmp_path / "mask.safetensors")
    line = finetune(f"isolation={{source: file, mask_file: {tmp_path / 'mask.safetensors'}}}")
    assert "made for another model: model.embed_tokens.weight" in line
