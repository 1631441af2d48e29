"""The score stage: texts in, their scores with dimensions and attributions out."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from raylm.errors import UserError
from raylm.rows import Rows, read_rows
from raylm.srm.config import ScoreConfig
from raylm.srm.data import prompt_of, response_of
from raylm.srm.scoring import refuse_truncated, score_all
from raylm.storage import Manifest, StageRun


def run(config: ScoreConfig) -> Manifest:
    """Score all texts; a second call with the same model and texts returns at once, an interrupted run goes on.

    Raises:
        UserError: a text is malformed, there is no reward model, or a text is cut and must not be.
    """
    from raylm import report
    from raylm.llm import models
    from raylm.srm.model import read_settings

    if not config.model or not config.texts:
        raise UserError("score needs model=, a reward model's directory, and texts=, a file of prompts and responses")
    settings = read_settings(Path(config.model))
    found, digest = read_rows("texts", config.texts)
    texts, ids = _texts(found)
    reference = models.resolve_encoder(config.model).ref
    stage = StageRun("score", config, config.out, {"texts": digest, "model": reference.revision})
    if stage.finished is None:
        path = os.path.abspath(config.model)
        scores, seconds = score_all(
            path, texts, stage.store, config.compute, own_tools=config.own_tools, label="score"
        )  # fmt: skip
        if config.on_truncated == "refuse":
            refuse_truncated(scores)
        named = {"prompt": [_shown(prompt) for prompt, _ in texts], "response": [text for _, text in texts]}
        table = pa.table({"row": ids, **named, **{name: scores.column(name) for name in scores.column_names}})
        stage.write_rows([table])
        flags = Counter(flag for row in scores.column("flags").to_pylist() for flag in row)
        figures: dict[str, Any] = {
            "texts": len(texts), "truncated": sum(scores.column("truncated").to_pylist()), "flags": dict(flags),
            "branches": [item["name"] for item in settings["branches"]],
        }  # fmt: skip
        model = {"name": settings["name"], "revision": reference.revision}
        stage.finish(len(texts), timing={"seconds": seconds}, model=model, figures=figures)
    report.for_stage("score", stage.store)
    assert stage.finished is not None
    return stage.finished


def _texts(found: Rows) -> tuple[list[Any], list[int]]:
    texts, ids = [], []
    for number, (where, row) in enumerate(found):
        prompt, _ = prompt_of(where, row)
        said = row.get("responses", [row.get("response")])
        if not isinstance(said, list) or not said:
            raise UserError(f"{where}: responses is {said!r}; it must be a list of texts")
        for response in said:
            texts.append((prompt, response_of(where, {"response": response}, "response")))
            ids.append(number)
    return texts, ids


def _shown(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(list(prompt), ensure_ascii=False)
