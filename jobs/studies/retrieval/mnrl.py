"""sentence-transformers' own trainer with its MultipleNegativesRankingLoss: same data, negatives, steps and encoder."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch

from jobs.studies.retrieval.arms import Arms, Cell, figures
from raylm.retrieval.config import RetrieverConfig
from raylm.retrieval.encoder import Encoder
from raylm.retrieval.layers import Kept, _shallow
from raylm.retrieval.measures import means
from raylm.retrieval.run import Run


def run(arms: Arms, cell: Cell) -> dict[str, Any]:
    """Train once; the row of a run, its epoch chosen on dev as in the other arms."""
    start = time.monotonic()
    config = arms.config(cell.seed, cell.size, loss="infonce_hard", **cell.setting)
    made = arms.run_of(config, "none")
    body = made.body
    model = _model(body, made.encoder, config)
    best = (-1.0, {})  # type: tuple[float, dict[str, torch.Tensor]]
    made.encoder.eval()

    def look() -> None:
        nonlocal best
        if config.adapter:
            made.encoder.adapter.weight.data.copy_(model[2].linear.weight)  # type: ignore[union-attr]
        made.looks.look(len(made.looks.rows))
        if made.looks.rows[-1]["nDCG@10"] > best[0]:
            best = made.looks.rows[-1]["nDCG@10"], {k: v.clone() for k, v in made._weights().items()}

    look()
    train(model, rows(made), config, config.epochs, look)
    made._load(best[1])
    test = made.looks.evaluate(made.encoder)
    return {
        **cell._asdict(), "dev": best[0],
        "steps": made.steps, "seconds": round(time.monotonic() - start, 1), **figures(test),
    }  # fmt: skip


def rows(made: Run) -> dict[str, list[str]]:
    """The training pairs with the hard negative that our first epoch draws for each."""
    found: dict[str, list[str]] = {"anchor": [], "positive": [], "negative": []}
    for step in range(made.pieces):
        batch = made._batch(step)
        found["anchor"] += [made.data.train.texts[number] for number in batch["numbers"]]
        found["positive"] += made.data.corpus.texts(batch["places"])
        found["negative"] += made.data.corpus.texts(batch["hard"][:, 0])
    return found


def train(model: Any, data: dict[str, list[str]], config: RetrieverConfig, epochs: int, look: Any = None) -> float:
    """sentence-transformers' trainer on rows of anchor, positive and negative; `look` after every epoch. Seconds."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback
    from transformers.utils import logging

    logging.set_verbosity_error()

    class Look(TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            if look is not None:
                look()

    with tempfile.TemporaryDirectory() as folder:
        options = SentenceTransformerTrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=config.batch_size, learning_rate=config.lr,
            warmup_steps=config.warmup_share, weight_decay=config.weight_decay, max_grad_norm=config.clip or 1e9,
            seed=config.seed, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = SentenceTransformerTrainer(
            model, options, Dataset.from_dict(data), callbacks=[Look()],
            loss=MultipleNegativesRankingLoss(model, scale=1 / config.temperature),
        )  # fmt: skip
        start = time.monotonic()
        trainer.train()
        return time.monotonic() - start


def _model(body: Any, encoder: Encoder, config: RetrieverConfig) -> Any:
    """The encoder as a SentenceTransformer that trains the same weights; frozen layers come from memory there too."""
    from sentence_transformers import SentenceTransformer, models

    with tempfile.TemporaryDirectory() as folder:
        Encoder.load(config.model, max_length=config.max_length).save(folder)
        plain = SentenceTransformer(folder, device="cpu")
    if not config.adapter:
        plain[0].model = encoder.model
        return plain
    held = _shallow(body, torch.nn.ModuleList())
    held._modules["embeddings"] = Kept(body.eval(), 8.0, body.config.pad_token_id)
    plain[0].model = held.requires_grad_(False)
    dense = models.Dense(encoder.dimension, encoder.dimension, bias=False, activation_function=torch.nn.Identity())
    torch.nn.init.eye_(dense.linear.weight)
    return SentenceTransformer(modules=[plain[0], plain[1], dense, plain[2]], device="cpu")


__all__ = ["means", "rows", "run", "train"]
