"""Verdicts and causes, as functions of a sample's signals and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raylm.ilp.config import CAUSES, Cause, RuleConfig

Verdict = Literal["unlearned", "partial", "learned"]
UNEXPLAINED = "unexplained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What is known of one sample; None is what could not be measured."""

    id: str
    nearest: float = 0.0
    """Similarity of the nearest other question."""
    contradiction: float | None = None
    """Similarity of the most similar question with another answer, 0 without one; None without a normal form."""
    opponents: tuple[str, ...] = ()
    """Samples that contradict this one."""
    echoes: bool = False
    """Whether the model answers as one of them says."""
    base_right: float | None = None
    """Share of the base model's samples that are right."""
    base_answer: str = ""
    """Normal form of its most frequent answer."""
    base_confidence: float | None = None
    """Share of the samples that give it."""
    base_wrong: bool | None = None
    """Whether that answer differs from the sample's."""
    base_familiarity: float | None = None
    """Mean log-probability of the question's least expected tokens under the base model, in nats."""
    unfamiliarity: float | None = None
    """How far that lies below the lower quartile of learned samples', in their interquartile ranges."""
    prerequisite_accuracy: float | None = None
    """Of the base model, on the sample's own prerequisites."""
    divergence: float | None = None
    """Largest Jensen-Shannon divergence of the base model from the answer over its tokens, in nats."""
    exposures: int | None = None
    looks_right: int | None = None
    """Exposures at which every token of the answer was the likeliest."""
    first_seen: float | None = None
    """Place of the first exposure in the training, in [0, 1]."""
    last_seen: float | None = None
    falling: float | None = None
    alternation: float | None = None
    confidence: float | None = None
    variability: float | None = None


@dataclass(frozen=True, slots=True)
class Attribution:
    """Why a sample is not learned."""

    cause: str
    """One of CAUSES, or `unexplained`."""
    confidence: float
    """How far past its thresholds the weakest signal of the rule is, in [0.5, 1]; 0 for unexplained."""
    other: str
    """Cause when the rules are asked in the other order."""
    holds: tuple[str, ...]
    """All causes whose rules hold."""
    unknown: tuple[str, ...]
    """Causes that could not be assessed for want of a signal."""


def verdict(chosen: bool, written: bool) -> Verdict:
    """From whether a sample passes P1 and P2."""
    verdicts: tuple[Verdict, ...] = ("unlearned", "partial", "learned")
    return verdicts[chosen + written]


def attribute(signals: Signals, rules: RuleConfig) -> Attribution:
    """The first cause of the order whose rule holds, and how sure that is."""
    supports = {cause: support(cause, signals, rules) for cause in CAUSES}
    holds = tuple(cause for cause in CAUSES if (supports[cause] or 0.0) >= 0.5)
    first = _first(rules.order, holds)
    return Attribution(
        cause=first,
        confidence=supports.get(first) or 0.0,
        other=_first(rules.other_order, holds),
        holds=holds,
        unknown=tuple(cause for cause in CAUSES if supports[cause] is None),
    )


def support(cause: Cause | str, signals: Signals, rules: RuleConfig) -> float | None:
    """How well a sample fits a rule: at least 0.5 where it holds, None where a signal it needs is missing.

    Each condition gives 0.5 at its threshold and goes linearly to 1 at the end of its scale, and to 0 at the other; a
    rule is as strong as its weakest condition (I).
    """
    conditions = _RULES[cause](signals, rules)
    known = [value for value in conditions if value is not None]
    if any(value < 0.5 for value in known):
        return min(known)  # it cannot hold, whatever is missing
    return None if len(known) < len(conditions) else min(known)


def above(value: float | None, threshold: float, top: float) -> float | None:
    """Support of `value > threshold` on a scale that ends at `top`."""
    if value is None:
        return None
    if value > threshold:
        return 0.5 + 0.5 * min(1.0, (value - threshold) / max(top - threshold, 1e-9))
    return max(0.0, min(0.499, 0.5 * value / threshold)) if threshold > 0 else 0.0


def below(value: float | None, threshold: float, bottom: float = 0.0) -> float | None:
    """Support of `value < threshold` on a scale that ends at `bottom`."""
    if value is None:
        return None
    if value < threshold:
        return 0.5 + 0.5 * min(1.0, (threshold - value) / max(threshold - bottom, 1e-9))
    return max(0.0, 0.499 - 0.5 * (value - threshold) / max(1.0 - threshold, 1e-9))


def _inconsistency(signals: Signals, rules: RuleConfig) -> list[float | None]:
    if signals.contradiction is None:
        return [None]
    return [above(signals.contradiction, rules.similarity - 1e-6, 1.0)]


def _prerequisite(signals: Signals, rules: RuleConfig) -> list[float | None]:
    unaware = below(signals.base_right, rules.base_right)
    if signals.prerequisite_accuracy is not None:
        return [unaware, below(signals.prerequisite_accuracy, rules.prerequisite_accuracy + 1e-9)]
    return [unaware, above(signals.unfamiliarity, rules.unfamiliar, 2 * rules.unfamiliar)]


def _conflict(signals: Signals, rules: RuleConfig) -> list[float | None]:
    other = None if signals.base_wrong is None else float(signals.base_wrong)
    return [
        above(signals.base_confidence, rules.confident, 1.0),
        other,
        above(signals.divergence, rules.divergence, 0.6931),
    ]


def _forgotten(signals: Signals, rules: RuleConfig) -> list[float | None]:
    if signals.looks_right is None:
        return [None]
    return [above(float(signals.looks_right), rules.learned_looks - 0.5, 2.0 * rules.learned_looks)]


def _underfit(signals: Signals, rules: RuleConfig) -> list[float | None]:
    if signals.looks_right is None:
        return [None, None]
    never = below(float(signals.looks_right), rules.learned_looks - 0.5)
    return [never, above(signals.falling, rules.falling, 0.5)]


_RULES = {
    "inconsistency": _inconsistency,
    "prerequisite": _prerequisite,
    "conflict": _conflict,
    "forgotten": _forgotten,
    "underfit": _underfit,
}


def _first(order: Sequence[str], holds: Sequence[str]) -> str:
    return next((cause for cause in order if cause in holds), UNEXPLAINED)


def shares(attributions: Mapping[str, Attribution], other: bool = False) -> dict[str, int]:
    """Samples by cause under one of the two orders, all causes and `unexplained` named."""
    found = dict.fromkeys((*CAUSES, UNEXPLAINED), 0)
    for each in attributions.values():
        found[each.other if other else each.cause] += 1
    return found
