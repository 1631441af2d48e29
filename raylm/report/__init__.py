"""HTML reports and terminal summaries, made from finished artefacts alone; they never change data files."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raylm.errors import UserError

if TYPE_CHECKING:
    from raylm.storage import Store

STAGES = (
    "explore",
    "synthesize",
    "finetune",
    "evaluate",
    "pipeline",
    "classify",
    "retrieve",
    "index",
    "evaluate_retrieval",
    "sweep",
    "reward",
    "score",
    "diagnosis",
    "diagnose",
)


def for_stage(name: str, store: Store, related: dict[str, Store] | None = None) -> str:
    """Write the report of a finished stage; returns its path.

    Args:
        name: the stage, one of STAGES.
        store: its finished artefact.
        related: artefacts it was made from, by the name of the input (`baseline` of evaluate, `trees` of synthesize).
            Those not given are looked for beside the artefact by their digest; without them the report lacks
            the examples that need them, and says so.

    Raises:
        UserError: the stage has no report or the artefact is not finished.
    """
    if name not in STAGES:
        raise UserError(f"{store.url}: no report for a {name!r} artefact; there are reports for {', '.join(STAGES)}")
    module = importlib.import_module(f"raylm.report.stages.{name}")
    return str(module.build(store, related or {}).write(store))


def for_artefact(path: str) -> str:
    """Write the report of whatever finished artefact lies at `path`; returns the report's path.

    Raises:
        UserError: there is no finished artefact.
    """
    from raylm.report.artefacts import finished
    from raylm.storage import Store

    store = Store(path)
    return for_stage(finished(store).stage, store)


def pipeline(out: str, stages: Sequence[str]) -> str:
    """Write the one-page report of a finished pipeline and print its summary; returns the report's path.

    Args:
        out: directory of the pipeline.
        stages: sub-directories of its stages, in the order they ran.
    """
    from raylm.report.stages.pipeline import build
    from raylm.report.summary import print_summary
    from raylm.storage import Store

    store = Store(out)
    path = build(store, {name: store.child(name) for name in stages}).write(store)
    print_summary(store, stages)
    return path
