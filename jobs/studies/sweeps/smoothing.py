"""Strengths of soft labels for a classifier of questions on a frozen all-MiniLM, with few training texts."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from raylm.classify.config import ClassifierConfig
from raylm.classify.run import Run
from raylm.config import build
from raylm.llm import models
from raylm.sweep.space import merged

SIZES = {"train": 300, "dev": 300}
"""Texts of trec_qc's training part; those that confirm are its test part."""
MEASURES = ("macro_f1", "nll")
ARMS: dict[str, dict[str, Any]] = {
    "hard": {"soft": {"kind": "none"}},
    "uniform_0.1": {"soft": {"kind": "uniform", "alpha": 0.1}},
}
"""What the best trial is confirmed against."""


def prepare(folder: Path) -> dict[str, Any]:
    """Texts of the sweep; its `base`."""
    source = Path(os.environ["RAYLM_DATA"], "trec_qc")
    read = {}
    for part in ("train", "test"):
        with gzip.open(source / f"{part}.jsonl.gz", "rt") as lines:
            read[part] = [json.loads(line) for line in lines]
    held = {row["text"] for row in read["test"]}
    rows = list({row["text"]: row for row in read["train"] if row["text"] not in held}.values())
    folder.mkdir(parents=True, exist_ok=True)
    order, start, paths = np.random.default_rng(0).permutation(len(rows)), 0, {}
    for part, size in SIZES.items():
        chosen = [rows[place] for place in order[start : start + size]]
        paths[part] = str(folder / f"{part}.jsonl")
        Path(paths[part]).write_text("".join(json.dumps(row) + "\n" for row in chosen))
        start += size
    settings = {"freeze": True, "epochs": 15, "batch_size": 32, "head_lr": 1e-2, "max_overlong_share": 1.0}
    return {**settings, **paths, "seed": 0}


def confirm(base: Mapping[str, Any], best: Mapping[str, Any], seed: int, folder: Path) -> list[dict[str, Any]]:
    """Rows of the arms on the test part, trained on another draw from what the sweep trained on and looked at."""
    draws, test = np.random.default_rng(seed), str(Path(os.environ["RAYLM_DATA"], "trec_qc", "test.jsonl.gz"))
    rows = [line for part in SIZES for line in Path(base[part]).read_text().splitlines(keepends=True)]
    order = draws.permutation(len(rows))
    paths = {}
    for part, places in (("train", order[: SIZES["train"]]), ("dev", order[SIZES["train"] :])):
        paths[part] = str(folder / f"{part}-{seed}.jsonl")
        Path(paths[part]).write_text("".join(rows[place] for place in places))
    encoder, found = str(models.resolve_encoder("all-minilm-l6-v2").path), []
    for arm, changes in {"best": best, **ARMS}.items():
        config = build(ClassifierConfig, merged({**base, **paths, "test": test, "seed": seed}, changes))
        run = Run(config, encoder, known=_vectors(folder, encoder, config))
        run.train(lambda row: None, lambda step, state: None)
        log = run.finish()
        found.append({"seed": seed, "arm": arm, **{name: log["figures"][name] for name in MEASURES}})
    return found


def _vectors(folder: Path, encoder: str, config: ClassifierConfig) -> dict[str, np.ndarray]:
    """Text to its vector by the untouched encoder, for all that is trained on and looked at; made once."""
    from transformers import AutoModel, AutoTokenizer

    from raylm.classify.data import load
    from raylm.classify.model import TextClassifier, Tokens, encode

    data = load(config)
    texts = [text for part in (data.train, data.dev, data.test) if part is not None for text in part.texts]
    texts = sorted(set(texts))
    file = folder / "vectors.npz"
    known = dict(zip(*(np.load(file)[key] for key in ("texts", "vectors")), strict=True)) if file.exists() else {}
    missing = [text for text in texts if text not in known]
    if missing:
        model = TextClassifier(AutoModel.from_pretrained(encoder), ("a", "b"), pooling="mean", max_length=128)
        made = encode(model, Tokens(missing, AutoTokenizer.from_pretrained(encoder), 128)).astype(np.float32)
        known |= dict(zip(missing, made, strict=True))
        np.savez(file, texts=np.array(list(known)), vectors=np.stack(list(known.values())))
    return known
