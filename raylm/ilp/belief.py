"""What is still to be asked of the base model: nothing that can no longer change which causes hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raylm.ilp.config import RuleConfig

_ROUND = 4
"""Samples asked for at a time. Of ten, the fewest that can rule out that more than seven agree."""


@dataclass(frozen=True, slots=True)
class Stakes:
    """Causes that hang on what the base model says of a sample."""

    prerequisite: bool
    """Whether I may hold: the question is unfamiliar, or it is not known whether it is."""
    conflict: bool
    """Whether II may hold: the sample's answer is far from what the base model expects."""

    def __bool__(self) -> bool:
        return self.prerequisite or self.conflict


def stakes(unfamiliarity: float | None, has_prerequisites: bool, divergence: float, rules: RuleConfig) -> Stakes:
    """What may hold, given the signals that need no samples."""
    return Stakes(
        prerequisite=has_prerequisites or unfamiliarity is None or unfamiliarity > rules.unfamiliar,
        conflict=divergence > rules.divergence,
    )


def settled(said: Sequence[str], right: Sequence[bool | None], total: int, open_: Stakes, rules: RuleConfig) -> bool:
    """Whether the samples that are left cannot change which causes hold.

    Cause I is out once so many samples are right that their share stays at its limit whatever follows; II once no
    answer can come to its share of the total. The shares of what was asked are then past the same limits: with m of a
    samples alike and m + (n - a) <= c n, m / a <= c - (1 - c)(n - a) / a.

    Args:
        said: normal forms of the responses so far.
        right: whether each is right, None where that cannot be told.
        total: samples that would be asked for.
        open_: the causes that may hold.
        rules: their thresholds.
    """
    left = total - len(said)
    if left <= 0:
        return True
    judged = sum(each is not None for each in right)
    known = sum(each is True for each in right) >= rules.base_right * (judged + left)
    most = max(Counter(said).values(), default=0)
    unsure = most + left <= rules.confident * total
    return (known or not open_.prerequisite) and (unsure or not open_.conflict)


def rounds(total: int) -> Iterator[range]:
    """The samples' numbers, a round at a time."""
    for start in range(0, total, _ROUND):
        yield range(start, min(start + _ROUND, total))
