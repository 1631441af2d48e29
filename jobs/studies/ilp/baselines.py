"""Other ways to name a cause: scores of the loss, of dataset cartography and of confident learning.

None of them speaks of causes. Each gets a decision tree over its scores, grown on worlds of other seeds whose planted
causes it sees; so they are stronger here than in use, where nobody labels causes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.studies.ilp.world import World
from raylm.llm import models
from raylm.llm.chat import prompt_ids

FEATURES = {
    "loss": ("nll",),
    "cartography": ("confidence", "variability"),
    "confident_learning": ("quality", "issue"),
    "random": ("random",),
}
"""Baseline to its scores of a sample."""
DEPTH, LEAF = 4, 5
"""Of a tree: greatest depth, and fewest samples of a leaf."""


def confident_learning(world: World, model: Path) -> dict[str, dict[str, float]]:
    """cleanlab's quality score and label issue of each sample, where its answer is its label.

    Probabilities are the tuned model's over all answers of the world, in the sample: a generative model is trained
    once, so there are no folds to take them from.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    tokenizer, network = models.load_tokenizer(model), models.load_model(model, torch.float32).eval()
    answers = sorted({row["answer"] for row in world.samples})
    tokens = [tokenizer.encode(answer, add_special_tokens=False)[0] for answer in answers]
    labels = np.array([answers.index(row["answer"]) for row in world.samples])
    found = []
    with torch.inference_mode():
        for row in world.samples:
            ids = prompt_ids(tokenizer, [{"role": "user", "content": row["question"]}])
            logits = network(input_ids=torch.tensor([ids])).logits[0, -1, tokens].double()
            found.append(torch.softmax(logits, -1).numpy())
    probabilities = np.stack(found)
    quality = get_label_quality_scores(labels, probabilities)
    issues = find_label_issues(labels, probabilities, n_jobs=1)
    return {
        row["id"]: {"quality": float(score), "issue": float(issue)}
        for row, score, issue in zip(world.samples, quality, issues, strict=True)
    }


def predictions(
    development: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, list[str]]:
    """Causes that each baseline gives to rows, after it has seen the planted causes of development rows."""
    from sklearn.tree import DecisionTreeClassifier

    found = {}
    for name, keys in FEATURES.items():
        if name == "random":
            causes = sorted({str(row["group"]) for row in development})
            found[name] = [str(cause) for cause in np.random.default_rng(seed).choice(causes, len(rows))]
            continue
        tree = DecisionTreeClassifier(
            max_depth=DEPTH, min_samples_leaf=LEAF, class_weight="balanced", random_state=seed
        )
        tree.fit([[row[key] for key in keys] for row in development], [row["group"] for row in development])
        found[name] = [str(cause) for cause in tree.predict([[row[key] for key in keys] for row in rows])]
    return found
