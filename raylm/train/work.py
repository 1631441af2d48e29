"""What a run has to do: its samples, the order they come in, and what it is watched on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raylm.train import repair
from raylm.train.config import FinetuneConfig
from raylm.train.data import Sample, encode
from raylm.train.plan import Plan
from raylm.train.repair import RepairPlan
from raylm.train.watch import held_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Work:
    """A config and its chains, with its repair plan applied to both."""

    config: FinetuneConfig
    """With the plan's order and passes."""
    samples: list[Sample]
    plan: Plan
    watched: dict[str, list[Sample]]
    repair: RepairPlan
    """An empty one where the config names none."""
    overlong: int
    """Chains that were left out because they are too long."""

    @classmethod
    def of(cls, config: FinetuneConfig, rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Work:
        """The work of a config on the rows that it reads.

        Raises:
            UserError: as `encode`, `held_out` and what reads a plan.
        """
        wanted = repair.load(config.plan)[0] if config.plan else RepairPlan()
        config = repair.adapt(config, wanted)
        kept = repair.keep(rows, wanted, config.plan)
        samples = encode(kept, tokenizer, config)
        overlong = len(kept) - len(samples)
        samples, extras = repair.prepare(samples, wanted, tokenizer, config)
        watched = {**held_out(config, tokenizer), **repair.watched(wanted, tokenizer, config)}
        plan = Plan([sample.task for sample in samples], config, extras)
        return cls(config, samples, plan, watched, wanted, overlong)

    def counts(self) -> dict[str, int]:
        """What the plan changes, in numbers; empty without one."""
        if not self.config.plan:
            return {}
        plan = self.repair
        return {
            "dropped": len(plan.drop),
            "separated": len(plan.separate),
            "upweighted": len(plan.upweight),
            "replayed": len(plan.replay.ids) if plan.replay else 0,
            "documents": sum(sample.task == repair.DOCUMENTS for sample in self.samples),
        }
