"""The soft labels of a training set, as its config says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raylm.errors import UserError
from raylm.softlabels import distributions
from raylm.softlabels.config import SoftLabelConfig
from raylm.softlabels.keywords import KeywordTable
from raylm.softlabels.words import Vocabulary, segmenter


@dataclass(frozen=True)
class Targets:
    """Soft labels and where they come from."""

    rows: np.ndarray
    """[texts, labels], rows sum to 1; the gold label is on top unless the config takes the guard away."""
    temperature: float | None = None
    """Of the softmax, where there was one."""
    table: KeywordTable | None = None


def make(
    config: SoftLabelConfig,
    train: tuple[Sequence[str], np.ndarray],
    held_out: tuple[Sequence[str], np.ndarray],
    labels: int,
    *,
    vectors: np.ndarray | None = None,
    taught: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> Targets:
    """Soft labels of training texts.

    Args:
        train: texts and their gold labels [texts].
        held_out: texts and gold labels that a temperature is fitted on.
        labels: how many there are.
        vectors: [texts, dimensions] of the training texts, for the kinds that need neighbours.
        taught: [texts, labels] each, a teacher's log-probabilities of the training and the held-out texts, for
            distillation.
        seed: of permutations.
    """
    texts, gold = train
    temperature, table = None, None
    if config.kind in ("none", "uniform", "prior"):
        soft = {
            "none": lambda: distributions.onehot(gold, labels),
            "uniform": lambda: distributions.uniform(len(gold), labels),
            "prior": lambda: distributions.prior(gold, labels),
        }[config.kind]()
    elif config.kind == "propagation":
        assert vectors is not None
        soft = distributions.propagated(distributions.neighbours(vectors, config.neighbours), gold, labels)
    else:
        known = held_out[1]
        if config.kind == "glle":
            assert vectors is not None
            graph = distributions.neighbours(vectors, config.neighbours)
            scores = held = distributions.glle(vectors, graph, gold, labels)
            known = gold
        elif config.kind == "distillation":
            assert taught is not None
            scores, held = taught
        else:
            words = Vocabulary.of(texts, segmenter(config.segment, texts), config.min_texts)
            table = KeywordTable.of(texts, [int(label) for label in gold], labels, words)
            relevance = table.scores if config.kind == "keyword" else table.similarities
            scores, held = relevance(leave_one_out=config.leave_one_out), relevance(words.counts(held_out[0]))
            if config.centre:
                usual = scores.mean(0)
                scores, held = scores - usual, held - usual
        temperature = _temperature(config, held, known, table)
        soft = distributions.from_scores(scores, temperature)
    if config.balance:
        soft = distributions.balanced(soft, gold)
    if config.permute:
        soft = distributions.permuted(soft, gold, seed)
    return Targets(distributions.mix(soft, gold, config.share, guard=config.guard), temperature, table)


def _temperature(config: SoftLabelConfig, held: np.ndarray, gold: np.ndarray, table: KeywordTable | None) -> float:
    if config.temperature == "length":
        if table is None:
            raise UserError(f"soft.temperature=length is for texts' words, which soft.kind={config.kind} does not use")
        return max(float(table.texts.sum()) / table.texts.shape[0], 1.0)
    return float(config.temperature) or distributions.fit_temperature(held, gold)
