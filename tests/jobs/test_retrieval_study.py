"""The retrieval study's arithmetic: means over seeds, differences paired by query, rows that are gone on from."""

import json

import pytest

from jobs.studies.retrieval.analysis import SCORED, summarise
from jobs.studies.retrieval.arms import ALPHAS, BACKBONES, LOSSES, SOFT, TIERS, Cell
from jobs.studies.retrieval.run import Log
from raylm.config import build
from raylm.retrieval.config import RetrieverConfig

QUERIES = [0.0, 0.5, 1.0, 0.5]


def rows(gain):
    """A row of every arm, seed and size; `gain` gives what an arm adds to every query."""
    found = []
    for seed in (0, 1):
        for size in TIERS["adapter"].sizes:
            arms = [(loss, "none") for loss in (*LOSSES, "mnrl")]
            arms += [(loss, soft) for loss in BACKBONES for soft in SOFT if soft != "none"]
            for loss, soft in arms:
                each = [value + gain(loss, soft, size) for value in QUERIES]
                found.append({**Cell(seed, size, loss, {}, soft)._asdict(), "each": each})
            found.append({**Cell(seed, size, "agreement", {}, "all")._asdict(), **dict.fromkeys(SCORED, 0.5 + seed)})
    return found


def test_figures_are_means_and_paired_differences():
    def gain(loss, soft, size):
        return 0.1 * (loss == "quadruplet") + 0.2 * (soft == "le") * (size == 32)

    reference = {name: {f"q{n}": {"nDCG@10": value} for n, value in enumerate(QUERIES)} for name in ("bm25", "base")}
    figures, intervals = summarise(TIERS["adapter"], rows(gain), reference)
    assert figures["ndcg10_base"] == pytest.approx(0.5)
    assert figures["ndcg10_quadruplet"] == pytest.approx(0.6)
    assert figures["quadruplet_minus_infonce_hard"] == pytest.approx(0.1)
    assert intervals["quadruplet_minus_infonce_hard"] == pytest.approx([0.1, 0.1])  # alike for all queries
    assert figures["infonce_hard_le_minus_none"] == pytest.approx(0)
    assert figures["infonce_hard_le_minus_none_cold"] == pytest.approx(0.2)
    assert figures["ndcg10_le"] == pytest.approx(0.6)
    assert figures["spearman_le"] == pytest.approx(1.0)
    assert intervals["ndcg10_base"][0] < 0.5 < intervals["ndcg10_base"][1]


def test_every_arm_chooses_from_equally_many():
    assert {len(settings) for _, settings in LOSSES.values()} == {3}
    assert len(ALPHAS) == 3
    for tier in TIERS.values():
        for loss, settings in LOSSES.values():
            for setting in settings:
                for soft in SOFT.values():
                    plain = {**tier.settings, "data": "x", "loss": loss, "soft": soft, **setting}
                    assert build(RetrieverConfig, plain).negatives.hard == 1


def test_rows_on_disk_are_not_made_again(tmp_path):
    made = []

    def make(cell):
        made.append(cell)
        return {**cell._asdict(), "dev": 1.0}

    cells = [Cell(0, 8, "quadruplet", {"margins": {"hard": hard}}) for hard in (0.1, 0.2)]
    for cell in (*cells, *cells):
        Log(tmp_path / "rows.jsonl").row(make, cell)
    assert made == cells
    assert len([json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]) == 2
