"""What a pipeline did, in numbers: gathered from the manifests for the report page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raylm.report.artefacts import finished, timing
from raylm.report.page import Interval, format_interval, format_p, label
from raylm.storage import Manifest, Store


@dataclass(frozen=True, slots=True)
class Gain:
    """One suite before and after."""

    suite: str
    questions: int
    before: Interval
    after: Interval
    prompted: Interval | None
    """The untouched model asked with the search's prompt, when that was evaluated."""
    difference: Interval
    fixed: int
    broken: int
    p_value: float

    @property
    def certain(self) -> bool:
        """Whether the interval of the difference leaves out zero."""
        return self.difference[1] > 0 or self.difference[2] < 0

    def sentence(self) -> str:
        """The result in words, with nothing claimed that the interval does not carry."""
        change = f"{self.before[0]:.1%} before, {self.after[0]:.1%} after"
        verdict = "" if self.certain else "; the interval holds zero, so no change is shown"
        figures = f"{format_interval(self.difference, signed=True)}, {format_p(self.p_value)}"
        return f"{label(self.suite)}: {change} ({figures}, {self.questions} questions){verdict}."


@dataclass(frozen=True, slots=True)
class Cost:
    """What one stage took."""

    stage: str
    url: str
    rows: int
    seconds: float
    resumed: int
    tokens: dict[str, int]


@dataclass(slots=True)
class Facts:
    """All of a pipeline."""

    gains: list[Gain] = field(default_factory=list)
    funnel: dict[str, int] = field(default_factory=dict)
    costs: list[Cost] = field(default_factory=list)

    @property
    def token_kinds(self) -> list[str]:
        """Kinds of tokens that any stage counted, in order of appearance."""
        return list(dict.fromkeys(kind for cost in self.costs for kind in cost.tokens))


def collect(stages: Mapping[str, Store]) -> Facts:
    """Read the manifests and timings of finished stages.

    Args:
        stages: name of each stage to its artefact; evaluations are evaluate_before, evaluate_after and, where
            it was made, evaluate_prompted.

    Raises:
        UserError: a stage is not finished.
    """
    manifests = {name: finished(store) for name, store in stages.items()}
    facts = Facts()
    for name, store in stages.items():
        manifest, times = manifests[name], timing(store)
        facts.costs.append(
            Cost(
                stage=name,
                url=store.url,
                rows=manifest.rows,
                seconds=float(times.get("seconds", 0.0)),
                resumed=int(times.get("resumed", 0)),
                tokens=manifest.tokens,
            )
        )
    for name in ("explore", "synthesize"):
        if name in manifests:
            facts.funnel.update(manifests[name].funnel)
    facts.gains = _gains(manifests)
    return facts


def _gains(manifests: Mapping[str, Manifest]) -> list[Gain]:
    if "evaluate_before" not in manifests or "evaluate_after" not in manifests:
        return []
    before, after = (manifests[f"evaluate_{name}"].figures for name in ("before", "after"))
    prompted = manifests["evaluate_prompted"].figures["suites"] if "evaluate_prompted" in manifests else {}
    comparison = after.get("comparison", {})
    return [
        Gain(
            suite=suite,
            questions=item["questions"],
            before=_accuracy(before["suites"][suite]),
            after=_accuracy(after["suites"][suite]),
            prompted=_accuracy(prompted[suite]) if suite in prompted else None,
            difference=(item["difference"], item["interval"][0], item["interval"][1]),
            fixed=item["fixed"],
            broken=item["broken"],
            p_value=item["p_value"],
        )
        for suite, item in comparison.items()
    ]


def _accuracy(item: dict[str, Any]) -> Interval:
    low, high = item["interval"]
    return (item["accuracy"], low, high)
