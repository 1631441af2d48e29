"""The studies of the two sweeps: what they compare, and that what confirms is not what chose."""

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.studies.sweeps import isolation, run, smoothing


def test_the_best_is_compared_with_the_others_in_pairs_of_a_seed():
    rows = [
        {"seed": seed, "arm": arm, "nll": level + shift}
        for seed, level in ((1, 0.0), (2, 5.0))
        for arm, shift in (("best", 0.1), ("hard", 0.3))
    ]
    figures, intervals = run.summarise(rows, ("nll",))
    assert figures["nll_best_minus_hard"] == pytest.approx(-0.2)
    assert intervals["nll_best_minus_hard"] == pytest.approx([-0.2, -0.2])  # seeds differ, pairs do not
    assert figures["nll_hard"] == pytest.approx(2.8)


def test_confirmation_looks_at_other_chats_than_the_sweep(tmp_path):
    held = tmp_path / "reverse-0-looked.jsonl"
    base = {"tasks": [{"name": "reverse", "chains": "x-train.jsonl", "eval_chains": str(held)}],
            "watch": {"every": 0.25, "chains": "sums-0-looked.jsonl"}}  # fmt: skip
    changed = isolation._renamed(base)
    assert changed["tasks"][0]["eval_chains"].endswith("reverse-0-confirming.jsonl")
    assert changed["tasks"][0]["chains"] == "x-train.jsonl"
    assert changed["watch"] == {"every": 0.25, "chains": "sums-0-confirming.jsonl"}


def test_questions_of_the_test_part_are_in_no_part_of_the_sweep(tmp_path, monkeypatch):
    import gzip

    folder = tmp_path / "trec_qc"
    folder.mkdir()
    for part, numbers in (("train", range(700)), ("test", range(650, 760))):
        with gzip.open(folder / f"{part}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps({"text": f"question {n}", "label": str(n % 3)}) + "\n" for n in numbers)
    monkeypatch.setenv("RAYLM_DATA", str(tmp_path))
    base = smoothing.prepare(tmp_path / "out")
    parts = [
        {json.loads(line)["text"] for line in Path(base[part]).read_text().splitlines()} for part in ("train", "dev")
    ]
    assert [len(part) for part in parts] == [300, 300]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & {f"question {n}" for n in range(650, 760)}
    assert smoothing.prepare(tmp_path / "out") == base
    assert np.isfinite(base["head_lr"])
