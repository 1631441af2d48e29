"""The two sizes of the study: what is searched, trained and asked in each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.studies.crps.base import World, pretrain, problems
from raylm.config import build
from raylm.llm import models
from raylm.records import Problem
from raylm.tasks.config import PromptConfig, SourceConfig
from raylm.tasks.sources import load_problems

Suites = dict[str, list[Problem]]


@dataclass(frozen=True)
class Tier:
    """One size of the study."""

    name: str
    """Of the result file."""
    count: int
    """Problems that are searched, a seed."""
    tokens: int
    """Generated tokens of a problem's tree."""
    arms: Mapping[str, tuple[int, ...]]
    """Sizes of the training sets, by arm."""
    shares: tuple[float, ...]
    """Shares of the search's tokens at which A0 and A4 are compared as well."""
    tuning: Mapping[str, Any]
    engine: Mapping[str, Any]
    search: Mapping[str, Any]
    searched_with: PromptConfig
    asked_with: PromptConfig
    """The chat of training and evaluation."""
    answer_tokens: int
    material: Callable[[int, int], tuple[Suites, list[Problem]]]
    """Test suites and search problems of (seed, count), which share no question."""
    base: Callable[[Path, int], Path]
    """The model that a seed starts from, made below a folder where it has to be made."""


FEW = (64, 256)
"""Sizes of the arms that only say which part of A4 makes the difference."""
MANY = (64, 128, 256, 512)
PARTS = (
    "A1_best_value", "A2_analyst_only", "A3_good_only", "A4_fewest_steps", "A4_released", "A4_check", "A4_full",
    "A5_shuffled", "A6_random_pairs", "A6_hard_only", "A6_soft_only", "A7_rejection_same", "correction",
)  # fmt: skip


def _sums(seed: int, count: int) -> tuple[Suites, list[Problem]]:
    world, avoid = World(), set[str]()
    suites = {
        "in_domain": problems(world, 400, 10_000 + seed, world.terms, avoid),
        "out_of_domain": problems(world, 400, 20_000 + seed, world.longer, avoid),
    }
    return suites, problems(world, count, 30_000 + seed, world.terms, avoid)


def _pretrained(out: Path, seed: int) -> Path:
    base, avoid = out / f"base-{seed}", set[str]()
    suites, pool = _sums(seed, MICRO.count)
    avoid |= {item.question for item in [*pool, *(item for suite in suites.values() for item in suite)]}
    pretrain(World(), base, seed, avoid)
    return base


MICRO = Tier(
    name="crps",
    count=1_000,
    tokens=240,
    arms={
        "A0_rejection": (32, *MANY, 1024),
        **dict.fromkeys(("A0_best_form", "A0_keep_form", "A1_best_path", "A4_crps", "A4_keep"), MANY),
        **dict.fromkeys(PARTS, FEW),
    },
    shares=(0.125, 0.25, 0.5, 1.0),
    tuning={
        "epochs": 3, "batch_size": 8, "micro_batch": 8, "lr": 1e-4, "warmup_share": 0.1, "max_length": 320,
        "workers": 1, "engine": "torch", "isolation": {"enabled": False},
    },
    engine={"kind": "transformers", "context": 192, "dtype": "float32", "max_in_flight": 128, "kv_cache_gib": 0.5},
    search={"samples": 4, "temperature": 0.8, "max_tokens": 80},
    searched_with=PromptConfig(),
    asked_with=PromptConfig(),
    answer_tokens=80,
    material=_sums,
    base=_pretrained,
)  # fmt: skip

_SYSTEM = "Work one operation a line, then write Answer: N."
_EXAMPLES = (
    ("Calculate 6 + 7 + 4.", "6 + 7 = 13\n13 + 4 = 17\nAnswer: 17"),
    ("Calculate 4 + 9 + 2 + 5.", "4 + 9 = 13\n13 + 2 = 15\n15 + 5 = 20\nAnswer: 20"),
    ("Tom has 5 apples. He picks 7 more. How many apples does he have now?", "5 + 7 = 12\nAnswer: 12"),
    ("Sara had 15 pens and gave 6 of them to Ben. How many pens does Sara have left?", "15 - 6 = 9\nAnswer: 9"),
    ("There are 4 rows with 6 chairs in each row. How many chairs are there?", "4 * 6 = 24\nAnswer: 24"),
)


def _gym(name: str, terms: tuple[int, int], **where: Any) -> SourceConfig:
    params = {"min_terms": terms[0], "max_terms": terms[1], "min_digits": 1, "max_digits": 1}
    more = {"allow_parentheses": False, "allow_negation": False, "operators": ["+"]}
    return build(SourceConfig, {"name": name, "task": "basic_arithmetic", "params": params | more, **where})


def _words(name: str, file: str, **where: Any) -> SourceConfig:
    path = os.path.join("${RAYLM_DATA}", file)
    return build(SourceConfig, {"name": name, "kind": "dataset", "path": path, "checker": "number", **where})


def _mixed(seed: int, count: int) -> tuple[Suites, list[Problem]]:
    single, apart = "mawps/singleop.jsonl.gz", {"shuffle": True, "seed": seed}
    suites = {
        "in_domain": [
            _gym("sums", (2, 4), part="test", limit=60, seed=1_001 + seed),
            _words("mawps", single, part="test", limit=60, **apart),
        ],
        "out_of_domain": [
            _gym("longer_sums", (5, 5), limit=40, seed=2_001 + seed),
            _words("svamp", "svamp/test.jsonl.gz", limit=60, **apart),
        ],
    }
    pool = [
        _gym("sums_train", (2, 4), part="train", limit=count * 3 // 5, seed=seed),
        _words("mawps_train", single, part="train", limit=count - count * 3 // 5, **apart),
    ]
    return {name: load_problems(sources) for name, sources in suites.items()}, load_problems(pool)


REAL = Tier(
    name="crps_real",
    count=300,
    tokens=160,
    arms={
        "A0_rejection": (16, 32, 64, 128, 256),
        **dict.fromkeys(("A4_crps", "A4_check"), (32, 64)),
        **dict.fromkeys(("A0_best_form", "A1_best_path", "A2_analyst_only", "A4_fewest_steps", "A5_shuffled"), (64,)),
    },
    shares=(),
    tuning={
        "epochs": 2, "batch_size": 16, "micro_batch": 8, "lr": 5e-5, "warmup_share": 0.1, "max_length": 256,
        "workers": 1, "engine": "torch", "isolation": {"enabled": False},
    },
    engine={
        "kind": "transformers", "model": "smollm2-135m-instruct", "context": 512, "dtype": "float32",
        "max_in_flight": 96, "kv_cache_gib": 2.0,
    },
    search={"samples": 4, "temperature": 0.7, "max_tokens": 48},
    searched_with=build(
        PromptConfig, {"system": _SYSTEM, "examples": [{"question": q, "response": a} for q, a in _EXAMPLES]}
    ),
    asked_with=build(PromptConfig, {"system": _SYSTEM}),
    answer_tokens=64,
    material=_mixed,
    base=lambda out, seed: models.resolve("smollm2-135m-instruct").path,
)  # fmt: skip

TIERS = {"micro": MICRO, "real": REAL}
