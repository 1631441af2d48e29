"""A run on one process: packing, held-out looks, the log of samples, penalties, and going on from a checkpoint."""

import json

import pytest
import torch

from raylm.config import build
from raylm.errors import UserError
from raylm.llm import models
from raylm.llm.chat import IGNORE
from raylm.train import checkpoint, loggers
from raylm.train.config import FinetuneConfig
from raylm.train.data import Sample, collate, encode
from raylm.train.engines import make_engine
from raylm.train.model import build_model
from raylm.train.plan import Plan
from raylm.train.run import Run
from raylm.train.trainer import Trainer

MODEL = str(models.resolve("micro").path)


def chain(number, shift=1):
    answer = f"{number} + {shift} = {number + shift}"
    turns = [{"role": "user", "content": f"{number} + {shift}"}, {"role": "assistant", "content": answer}]
    return {"id": str(number), "messages": turns}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def made(tmp_path):
    """Builds runs below a folder, on twelve short chains."""
    chains = write(tmp_path / "chains.jsonl", [chain(number) for number in range(12)])

    def make(saved=None, root=None, **changes):
        base = {
            "chains": chains, "engine": "torch", "workers": 1, "batch_size": 4, "micro_batch": 4, "lr": 5e-3,
            "epochs": 2, "checkpoint_every": 100, "isolation": {"enabled": False}, "schedule": "constant",
        }  # fmt: skip
        torch.manual_seed(0)
        config = build(FinetuneConfig, base | changes)
        return Run(config, MODEL, root or tmp_path, (0, 1), saved)

    return make


def nothing(*_):
    pass


def weights(run):
    return {name: value.clone() for name, value in run.engine.weights().items()}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def trainer_of(rows, **changes):
    base = {"engine": "torch", "workers": 1, "batch_size": len(rows), "micro_batch": len(rows), "lr": 1e-3}
    config = build(FinetuneConfig, {**base, "isolation": {"enabled": False}, **changes})
    tokenizer = models.load_tokenizer(MODEL)
    samples = encode(rows, tokenizer, config)
    plan = Plan([sample.task for sample in samples], config)
    engine = make_engine(build_model(MODEL, config), config, 1, plan.steps)
    return Trainer(config, engine, samples, plan, tokenizer.pad_token_id, ranks=(0, 1))


ROWS = [chain(number, 3**number) for number in range(6)]


def test_packed_chains_have_the_losses_and_gradients_of_padded_ones():
    padded, packed = trainer_of(ROWS), trainer_of(ROWS, packing=True)
    first, second = (trainer.step(0) for trainer in (padded, packed))
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)
    assert padded.padding > 0 == packed.padding
    for (_, left, mine, hits), (_, right, theirs, others) in zip(sorted(padded.seen), sorted(packed.seen), strict=True):
        assert left == right
        assert mine == pytest.approx(theirs, rel=1e-4)
        assert hits == others


def test_a_packed_chain_is_not_predicted_from_the_one_before():
    batch = collate([Sample("a", [5, 6], [IGNORE, 6]), Sample("b", [7, 8, 9], [7, 8, 9])], 0, packed=True)
    assert batch["ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[IGNORE, 6, IGNORE, 8, 9]]
    assert batch["positions"].tolist() == [[0, 1, 0, 1, 2]]
    assert batch["owner"].tolist() == [[0, 0, 1, 1, 1]]


def test_the_log_of_samples_is_their_own_loss_before_the_step():
    trainer = trainer_of(ROWS)
    alone = {sample.id: trainer.look([sample]) for sample in trainer.samples}
    everyone = trainer.look(trainer.samples)
    row = trainer.step(0)
    assert {name: loss for _, name, loss, _ in trainer.seen} == pytest.approx(
        {name: look["loss"] for name, look in alone.items()}, rel=1e-4
    )
    assert {name: right for _, name, _, right in trainer.seen} == {
        n: look["token_accuracy"] for n, look in alone.items()
    }
    assert everyone["loss"] == pytest.approx(row["loss"], rel=1e-5)


def test_a_look_changes_nothing():
    plain, looked = trainer_of(ROWS), trainer_of(ROWS)
    looked.look(looked.samples)
    assert [plain.step(step)["loss"] for step in range(2)] == [looked.step(step)["loss"] for step in range(2)]


def test_exact_is_what_greedy_decoding_gets_right():
    trainer = trainer_of(ROWS[:2], lr=1e-2, epochs=120, schedule="constant")
    assert trainer.look(trainer.samples)["exact"] == 0
    for step in range(trainer.plan.steps):
        trainer.step(step)
    look = trainer.look(trainer.samples)
    assert (look["exact"], look["token_accuracy"]) == (1.0, 1.0)
    model = trainer.engine.model.eval()
    for sample in trainer.samples:
        prompt = [token for token, label in zip(sample.ids, sample.labels, strict=True) if label == IGNORE]
        ids = torch.tensor([prompt])
        written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)
        assert written[0, : len(sample.ids)].tolist() == sample.ids


def test_training_ends_when_patience_does_and_the_best_weights_are_exported(made, tmp_path):
    """Held-out chains that say the opposite are best before any step."""
    contrary = write(tmp_path / "held.jsonl", [chain(number, 5) for number in range(12)])
    watch = {"chains": contrary, "every": 2, "patience": 2, "keep_best": True}
    run = made(watch=watch, epochs=20, lr=3e-2)
    run.train(nothing, nothing)
    best, _ = run.watch.best()
    looked = [row["step"] for row in run.watch.rows]
    assert looked[-1] == len(run.rows) < run.plan.steps
    assert looked[-1] == best + 4
    log = run.finish()
    assert log["exported_step"] == best
    exported = models.load_model(tmp_path / "model", torch.float32)
    again = made(watch=watch, epochs=20, lr=3e-2)
    for step in range(best):
        again.trainer.step(step)
    expected = weights(again)
    for name, value in exported.named_parameters():
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize(
    "changes",
    [
        {"isolation": {"protect": 0.2}},
        {"penalty": {"kind": "l2_init", "weight": 1.0}},
        {"packing": True, "precision": "bfloat16"},
        {"lora": {"rank": 4}},
    ],
    ids=str,
)
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(made, tmp_path, changes):
    held = write(tmp_path / "held.jsonl", [chain(number, 2) for number in range(5)])
    changes = {**changes, "watch": {"chains": held, "every": 2}, "checkpoint_every": 3}
    folder, saved = tmp_path / "checkpoint", []

    def save(step, state):
        if not saved:
            folder.mkdir()
            checkpoint.save(folder, 0, 1, state)
            saved.append(step)

    whole = made(**changes)
    whole.train(nothing, save)
    again = made(saved=folder, **changes)
    assert again.first == saved[0] == 3
    again.train(nothing, nothing)
    assert same(weights(whole), weights(again))
    assert (again.rows, again.watch.rows, again.trainer.seen) == (whole.rows, whole.watch.rows, whole.trainer.seen)
    if whole.engine.optimizer.isolation:
        assert again.engine.optimizer.isolation.log == whole.engine.optimizer.isolation.log


def test_activations_that_are_made_again_change_nothing(made):
    found = []
    for again in (False, True):
        run = made(activation_checkpointing=again)
        run.train(nothing, nothing)
        found.append(weights(run))
        assert run.engine.model.is_gradient_checkpointing == again
    assert same(*found)


def sequence(tmp_path, **changes):
    tasks = [
        {"name": name, "chains": write(tmp_path / f"{name}.jsonl", [chain(n, shift) for n in range(8)]),
         "eval_chains": write(tmp_path / f"{name}-held.jsonl", [chain(n, shift) for n in range(4)])}
        for name, shift in (("first", 1), ("second", 7))
    ]  # fmt: skip
    return {"tasks": tasks, "order": "sequential", "epochs": 10, "watch": {"every": 5}, **changes}


def distance(run, start):
    return sum(float((value - start[name]).square().sum()) for name, value in weights(run).items()) ** 0.5


def test_a_pull_to_the_start_keeps_weights_near_it(made):
    found = []
    for penalty in (None, {"kind": "l2_init", "weight": 5.0}):
        run = made(penalty=penalty)
        start = weights(run)
        run.train(nothing, nothing)
        found.append(distance(run, start))
    assert found[1] < 0.7 * found[0]


def test_consolidation_begins_with_the_second_task(made, tmp_path):
    found = {}
    for weight in (None, 30.0):
        penalty = weight and {"kind": "ewc", "weight": weight}
        run = made(**sequence(tmp_path, penalty=penalty))
        middle = {}

        def on_step(row, run=run, middle=middle):
            if row["step"] == 20:
                middle.update(weights(run))

        run.train(on_step, nothing)
        found[weight] = (middle, distance(run, middle))
    assert same(found[None][0], found[30.0][0])
    assert found[30.0][1] < 0.7 * found[None][1]


def test_tasks_in_a_row_are_forgotten_visibly(made, tmp_path):
    run = made(**sequence(tmp_path))
    run.train(nothing, nothing)
    assert {row["set"] for row in run.watch.rows} == {"first", "second"}
    losses = {
        name: {row["step"]: row["loss"] for row in run.watch.rows if row["set"] == name} for name in ("first", "second")
    }
    assert losses["first"][20] < losses["first"][0]
    assert losses["first"][40] > losses["first"][20]
    assert losses["second"][40] < losses["second"][20]


def test_curves_go_to_tensorboard(made, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    held = write(tmp_path / "held.jsonl", [chain(number, 2) for number in range(5)])
    run = made(log_to=["tensorboard"], watch={"chains": held, "every": 3})
    run.train(nothing, nothing)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 7))
    assert [event.value for event in events.Scalars("all/loss")] == pytest.approx(
        [row["loss"] for row in run.watch.rows]
    )


def test_a_loss_that_is_not_finite_names_its_chains(made):
    run = made()
    next(iter(run.engine.model.parameters())).data[:] = float("nan")
    with pytest.raises(
        FloatingPointError, match=r"step 1: the gradient's norm is nan; the batch holds chains \d+, \d+"
    ):
        run.train(nothing, nothing)
    assert not run.rows


def test_a_client_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="log_to names wandb, which is not installed; pip install wandb"):
        loggers.check(FinetuneConfig(log_to=("wandb",)))


def test_the_mask_file_and_the_log_come_out(made, tmp_path):
    run = made(isolation={"protect": 0.3})
    run.train(nothing, nothing)
    log = run.finish()
    assert log["masks"]
    assert len(log["seen"]) == 24
    assert (tmp_path / "isolation" / "mask.safetensors").exists()
    probe = made(isolation={"source": "file", "mask_file": str(tmp_path / "isolation" / "mask.safetensors")})
    before = weights(probe)
    probe.train(nothing, nothing)
    moved = sum(int((value != before[name]).sum()) for name, value in weights(probe).items())
    assert moved / sum(value.numel() for value in before.values()) == pytest.approx(0.7, abs=0.02)
