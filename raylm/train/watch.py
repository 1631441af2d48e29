"""Held-out loss during training: when to look, what is best, when to stop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from raylm.train.config import FinetuneConfig
from raylm.train.data import Sample, encode, read_chains
from raylm.train.isolation.schedule import count_steps
from raylm.train.plan import Plan
from raylm.train.repair import GENERAL, ExtraPlan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raylm.train.trainer import Trainer

ALL = "all"
"""Name of the set of `watch.chains`."""


def held_out(config: FinetuneConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Sample]]:
    """Held-out samples by the name of their set.

    Raises:
        UserError: as `read_chains` and `encode`.
    """
    paths = {ALL: config.watch.chains} if config.watch.chains else {}
    paths |= {task.name: task.eval_chains for task in config.tasks if task.eval_chains}
    return {name: encode(read_chains(path)[0], tokenizer, config) for name, path in paths.items()}


class Watch:
    """Looks at held-out samples; every rank sees the same numbers and so decides alike."""

    def __init__(
        self, config: FinetuneConfig, sets: dict[str, list[Sample]], plan: Plan, extra: ExtraPlan | None = None
    ) -> None:
        """Watch `sets` in a run of a plan; the general set of `extra` can end it."""
        self.config, self.sets, self.ends, self.extra = config.watch, sets, plan.stage_ends(), extra
        self._own_ends = {plan.task_at(end - 1): end for end in self.ends} if config.order == "sequential" else {}
        self.every = max(1, count_steps(config.watch.every, plan.steps))
        self.rows: list[dict[str, Any]] = []
        """step, set, loss, token_accuracy, exact; before the first step as well."""

    def due(self, step: int) -> bool:
        """Whether to look after a step: before the first one (0), every so often, and when a stage ends."""
        return bool(self.sets) and (step % self.every == 0 or step in self.ends)

    def look(self, trainer: Trainer, step: int) -> bool:
        """Look at all sets; returns whether their mean loss is the lowest so far. All ranks together."""
        before = self.best()
        for name, samples in self.sets.items():
            self.rows.append({"step": step, "set": name, **trainer.look(samples)})
        return before is None or self.losses()[step] < before[1]

    def losses(self) -> dict[int, float]:
        """Step to the mean loss over all sets; a general set counts where there is no other."""
        found: dict[int, list[float]] = {}
        others = set(self.sets) - {GENERAL}
        for row in self.rows:
            if others and row["set"] == GENERAL:
                continue
            found.setdefault(row["step"], []).append(row["loss"])
        return {step: sum(values) / len(values) for step, values in found.items()}

    def measures(self, until: int) -> dict[str, float]:
        """What the looks up to a step say, in one number each.

        Returns:
            held_out_loss and held_out_exact: means over all sets, at the last look; forgetting: mean over all sets of
            the best exact share minus the last (source: the usual definition); new_task: mean over the sets of tasks
            of the exact share when the task's own training ended, or at the last look. Without looks, nothing; without
            sets of tasks, no new_task.
        """
        looked: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            if row["step"] <= until:
                looked.setdefault(row["set"], []).append(row)
        if not looked:
            return {}
        found = {
            "held_out_loss": _mean(rows[-1]["loss"] for rows in looked.values()),
            "held_out_exact": _mean(rows[-1]["exact"] for rows in looked.values()),
            "forgetting": _mean(max(row["exact"] for row in rows) - rows[-1]["exact"] for rows in looked.values()),
        }
        tasks = [rows for name, rows in looked.items() if name != ALL]
        if tasks:
            found["new_task"] = _mean(self._at_own_end(rows) for rows in tasks)
        return found

    def _at_own_end(self, rows: list[dict[str, Any]]) -> float:
        """The exact share of a task at the end of its own training, or at the last look before it."""
        end = self._own_ends.get(rows[0]["set"], rows[-1]["step"])
        return [row["exact"] for row in rows if row["step"] <= end][-1]

    def best(self) -> tuple[int, float] | None:
        """Step and mean loss of the lowest look, the first of equal ones; None before the first look."""
        losses = self.losses()
        return min(losses.items(), key=lambda item: (item[1], item[0])) if losses else None

    def ended(self, step: int) -> bool:
        """Whether patience has run out, or the general set suffers."""
        if self.suffers():
            return True
        best = self.best()
        if not self.config.patience or best is None:
            return False
        return sum(best[0] < looked <= step for looked in self.losses()) >= self.config.patience

    def suffers(self) -> bool:
        """Whether the general set's loss has risen by more than a repair plan allows."""
        losses = [row["loss"] for row in self.rows if row["set"] == GENERAL]
        return self.extra is not None and len(losses) > 1 and losses[-1] > losses[0] * (1 + self.extra.max_rise)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
