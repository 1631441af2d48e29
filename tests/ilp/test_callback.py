"""The log of samples of a run of Hugging Face's Trainer."""

import json

import pytest
import torch
from transformers import Trainer, TrainingArguments

from raylm.errors import UserError
from raylm.ilp import log
from raylm.ilp.callback import SampleLog
from raylm.ilp.scoring import Scorer
from raylm.llm import models
from raylm.llm.chat import training_ids
from raylm.train.data import Sample, collate

MODEL = models.resolve("micro").path


def dataset():
    tokenizer = models.load_tokenizer(MODEL)
    found = []
    for number in range(6):
        turns = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a" * (1 + number % 3)}]
        ids, labels = training_ids(tokenizer, turns)
        found.append({"input_ids": ids, "labels": labels})
    return found


def padded(rows):
    tensors = collate([Sample("", row["input_ids"], row["labels"]) for row in rows], 0)
    return {"input_ids": tensors["ids"], "labels": tensors["labels"], "attention_mask": tensors["mask"]}


def trained(tmp_path, samples, **changes):
    settings = {"output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 3, "num_train_epochs": 2,
                "report_to": [], "use_cpu": True, "save_strategy": "no", "learning_rate": 1e-3, "seed": 1}  # fmt: skip
    callback = SampleLog(tmp_path / "samples.jsonl", samples, [f"s{n}" for n in range(len(samples))])
    model = models.load_model(MODEL, torch.float32)
    trainer = Trainer(
        model=model, args=TrainingArguments(**{**settings, **changes}), train_dataset=samples, data_collator=padded,
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    return callback


def test_the_log_holds_every_sample_at_every_step_with_its_own_loss(tmp_path):
    samples = dataset()
    callback = trained(tmp_path, samples, gradient_accumulation_steps=2)
    found, _ = log.read(str(tmp_path / "samples.jsonl"))
    assert callback.unknown == 0
    assert set(found.paths) == {f"s{n}" for n in range(6)}
    assert {path.steps for path in found.paths.values()} == {(1, 2)}
    scores = Scorer(MODEL).score([Sample(str(n), row["input_ids"], row["labels"]) for n, row in enumerate(samples)])
    for number, score in enumerate(scores):
        assert found.paths[f"s{number}"].losses[0] == pytest.approx(score.nll, rel=1e-3)


def test_what_is_not_in_the_dataset_is_counted(tmp_path):
    samples = dataset()
    callback = SampleLog(tmp_path / "samples.jsonl", samples[:4])
    model = models.load_model(MODEL, torch.float32).train()
    state = type("State", (), {"is_local_process_zero": True, "global_step": 0})()
    callback.on_train_begin(None, state, None, model=model)
    callback.on_step_begin(None, state, None)
    model(**padded(samples))
    callback.on_step_end(None, state, None)
    model.eval()
    model(**padded(samples))
    callback.on_train_end(None, state, None)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    assert callback.unknown == 2


def test_a_resumed_run_cuts_the_log_back(tmp_path):
    lines = [json.dumps({"step": step, "id": "1", "loss": 1.0, "token_accuracy": 0.0}) for step in (1, 2, 3)]
    (tmp_path / "samples.jsonl").write_text("\n".join([*lines, lines[0][:5]]))
    callback = SampleLog(tmp_path / "samples.jsonl", dataset())
    state = type("State", (), {"is_local_process_zero": True, "global_step": 2})()
    callback.on_train_begin(None, state, None, model=models.load_model(MODEL, torch.float32))
    callback.on_train_end(None, state, None)
    assert (tmp_path / "samples.jsonl").read_text().splitlines() == lines[:2]


def test_ids_must_fit_the_dataset(tmp_path):
    for ids in (["a"], [str(n) for n in range(9)]):
        with pytest.raises(UserError, match=f"there are {len(ids)} ids"):
            SampleLog(tmp_path / "x.jsonl", dataset(), ids)
    with pytest.raises(UserError, match="sample 1 of the dataset has no input_ids"):
        SampleLog(tmp_path / "x.jsonl", [{"text": "a"}])
