"""Do soft labels from words help text classification, more so with few texts, a long tail or wrong labels?

    python -m jobs.studies.softlabels.run [--tier frozen|tuned] [--seeds 0 1 2 3 4] [--rows-only] [--threads N]
        [--out runs/studies/softlabels]

frozen: heads on the vectors of an untouched all-MiniLM, three sets, five settings, all arms. tuned: the whole encoder
trains, on one set, in two settings, with fewer arms, among them the published form. Every arm has its strength chosen
by macro-F1 on dev, from the same number of candidates, and is then measured once on test; differences are paired over
sets and seeds. The sets (banking77, trec_qc, sst; samples of the larger ones) are read from $RAYLM_DATA. Finished runs
are lines of rows-TIER-SEED.jsonl, and the same command goes on from them. Results: studies/results/softlabels.json and
softlabels_tuned.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs import results
from jobs.studies.epi.analysis import RESAMPLES, interval
from raylm.classify.config import ClassifierConfig
from raylm.classify.data import Texts
from raylm.classify.model import Tokens, encode
from raylm.classify.run import Run
from raylm.config import build
from raylm.llm import models
from raylm.retrieval.significance import randomisation

SETS = {
    "trec_qc": ("trec_qc/train", "", "trec_qc/test"),
    "banking77": ("banking77/train", "", "banking77/test"),
    "sst": ("sst/fine.train", "sst/fine.dev", "sst/fine.test"),
}
"""Train, dev and test files; without a dev file a tenth of the training texts is set aside."""
SIZES = {"banking77": (4_000, 1_000, 1_500), "sst": (4_000, 1_000, 1_500)}
"""Texts that are drawn from the larger sets' train, dev and test files, so that two cores can encode them."""
STRESSES: dict[str, dict[str, float]] = {
    "full": {},
    "few": {"keep": 0.05},
    "imbalanced": {"imbalance": 100.0, "keep": 0.5},
    "imbalanced_10": {"imbalance": 10.0, "keep": 0.5},
    "noisy": {"noise": 0.2, "keep": 0.5},
}
ALPHAS = (0.1, 0.3)
"""Strengths that every arm with soft labels chooses from."""
ARMS: dict[str, dict[str, Any]] = {
    "hard": {"kind": "none"},
    "uniform": {"kind": "uniform"},
    "prior": {"kind": "prior"},
    "centroid": {"kind": "centroid"},
    "distilled": {"kind": "distillation", "teacher": "the hard arm"},
    "kwls": {"kind": "keyword"},
    "permuted": {"kind": "keyword", "permute": True},
    "kwls_all_counts": {"kind": "keyword", "leave_one_out": False},
    "kwls_centred": {"kind": "keyword", "centre": True},
    "kwls_balanced": {"kind": "keyword", "balance": True, "guard": False},
    "balanced_permuted": {"kind": "keyword", "balance": True, "guard": False, "permute": True},
    "kwls_kl": {"kind": "keyword", "mode": "kl"},
    "kwls_published": {
        "kind": "keyword", "mode": "two_head", "leave_one_out": False, "temperature": "length", "guard": False,
        "segment": "spaces",
    },
}  # fmt: skip
"""kwls_published is for the tuned tier: heads on fixed vectors share nothing, so that a second one changes nothing."""
PUBLISHED_ALPHAS = (0.5, 1.0)
"""The two ends of the published range, of kwls_published."""


@dataclass(frozen=True)
class Tier:
    """One size of the study."""

    name: str
    sets: tuple[str, ...]
    stresses: tuple[str, ...]
    arms: tuple[str, ...]
    alphas: tuple[float, ...]
    settings: Mapping[str, Any]


TIERS = {
    "frozen": Tier(
        "softlabels", tuple(SETS), tuple(STRESSES), tuple(ARMS)[:-2], ALPHAS,
        {"freeze": True, "epochs": 12, "batch_size": 128, "head_lr": 2e-2},
    ),
    "tuned": Tier(
        "softlabels_tuned", ("trec_qc",), ("few", "imbalanced"),
        ("hard", "uniform", "permuted", "kwls", "kwls_published"), ALPHAS,
        {"epochs": 6, "batch_size": 16, "lr": 1e-4},
    ),
}  # fmt: skip


def main(tier: Tier, seeds: Sequence[int], out: Path, rows_only: bool) -> None:
    """Make what is missing, and write the result unless other runs are still to come."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [row for seed in seeds for row in _seed(tier, seed, out)]
    if rows_only:
        return
    figures, intervals = summarise(tier, rows)
    print(results.write(f"studies/results/{tier.name}", figures, rows, intervals=intervals, seeds=seeds))


def _seed(tier: Tier, seed: int, out: Path) -> Iterator[dict[str, Any]]:
    """All rows of one seed, those that are in its file and those made now."""
    file = out / f"rows-{tier.name}-{seed}.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["set"], row["stress"], row["arm"]): row for row in found}
    for name in tier.sets:
        known = None
        for stress in tier.stresses:
            for arm in tier.arms:
                if (row := done.get((name, stress, arm))) is None:
                    start = time.monotonic()
                    if known is None and tier.settings.get("freeze"):
                        known = _vectors(name, out)
                    row = _chosen(tier, name, stress, arm, seed=seed, out=out, known=known)
                    with file.open("a") as sink:
                        sink.write(json.dumps(row) + "\n")
                    said = {key: round(row[key], 3) for key in ("macro_f1", "ece", "alpha")}
                    print(f"{seed} {name} {stress} {arm} ({time.monotonic() - start:.0f} s): {said}", file=sys.stderr)
                yield row


def _chosen(
    tier: Tier, name: str, stress: str, arm: str, *, seed: int, out: Path, known: Mapping[str, np.ndarray] | None
) -> dict[str, Any]:
    """The strength with the best dev macro-F1, and what it gives on test."""
    teacher = _teacher(tier, name, stress, seed=seed, out=out, known=known) if arm == "distilled" else None
    alphas = {"hard": (0.0,), "kwls_published": PUBLISHED_ALPHAS}.get(arm, tier.alphas)
    best: tuple[float, Run, float] | None = None
    for alpha in alphas:
        soft = {**ARMS[arm], "alpha": alpha}
        run = _trained(tier, name, stress, soft, seed=seed, out=out, known=known, teacher=teacher)
        dev = max(look["macro_f1"] for look in run.looks)
        if best is None or dev > best[0]:
            best = (dev, run, alpha)
    assert best is not None
    log = best[1].finish()
    kept = {"dev_macro_f1": best[0], "alpha": best[2], "temperature": log["temperature"], **log["texts"]}
    return {"seed": seed, "set": name, "stress": stress, "arm": arm, **log["figures"], **kept}


def _trained(
    tier: Tier, name: str, stress: str, soft: Mapping[str, Any], *, seed: int, out: Path,
    known: Mapping[str, np.ndarray] | None, teacher: Callable[[Texts], np.ndarray] | None = None,
) -> Run:  # fmt: skip
    config = build(ClassifierConfig, {
        **tier.settings, **_files(name, out), "seed": seed, "stress": STRESSES[stress], "max_overlong_share": 1.0,
        "soft": soft,
    })  # fmt: skip
    run = Run(config, str(models.resolve_encoder("all-minilm-l6-v2").path), known=known, teacher=teacher)
    run.train(lambda row: None, lambda step, state: None)
    return run


def _teacher(
    tier: Tier, name: str, stress: str, *, seed: int, out: Path, known: Mapping[str, np.ndarray] | None
) -> Callable[[Texts], np.ndarray]:
    """Probabilities by the classifier with hard labels, trained on the same texts."""
    assert known is not None
    run = _trained(tier, name, stress, ARMS["hard"], seed=seed, out=out, known=known)
    run.finish()

    def probabilities(texts: Texts) -> np.ndarray:
        with torch.no_grad():
            pooled = torch.from_numpy(np.stack([known[text] for text in texts.texts])).float()
            return torch.softmax(run.model(pooled=pooled)[0].double(), -1).numpy()

    return probabilities


def _files(name: str, out: Path) -> dict[str, str]:
    """Paths of a set's train, dev and test; samples of the larger ones are written once."""
    folder, found = Path(os.environ["RAYLM_DATA"]), {}
    sizes = SIZES.get(name, (0, 0, 0))
    for part, file, size in zip(("train", "dev", "test"), SETS[name], sizes, strict=True):
        if not file:
            continue
        found[part] = str(folder / f"{file}.jsonl.gz")
        if size:
            sample = out / f"{name}-{part}.jsonl"
            if not sample.exists():
                lines = gzip.decompress(Path(found[part]).read_bytes()).decode().splitlines()
                chosen = np.sort(np.random.default_rng(0).permutation(len(lines))[:size])
                sample.write_text("".join(lines[place] + "\n" for place in chosen))
            found[part] = str(sample)
    return found


def _vectors(name: str, out: Path) -> dict[str, np.ndarray]:
    """Text to its vector by the untouched encoder, for all texts of a set; made once."""
    texts: dict[str, None] = {}
    for path in _files(name, out).values():
        with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as source:
            texts |= dict.fromkeys(json.loads(line)["text"] for line in source)
    file = out / f"vectors-{name}.npy"
    if not file.exists():
        from transformers import AutoModel, AutoTokenizer

        from raylm.classify.model import TextClassifier

        path = models.resolve_encoder("all-minilm-l6-v2").path
        model = TextClassifier(AutoModel.from_pretrained(path), ("a", "b"), pooling="mean", max_length=128)
        np.save(file, encode(model, Tokens(list(texts), AutoTokenizer.from_pretrained(path), 128)).astype(np.float32))
    return dict(zip(texts, np.load(file), strict=True))


def summarise(tier: Tier, rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Means over sets and seeds, and paired differences from hard and uniform labels and the permuted control.

    A difference comes with its bootstrap interval over pairs of set and seed, and with the p-value of the paired
    randomisation test as p_ARM_minus_OTHER.
    """
    keys = sorted({(row["set"], row["seed"]) for row in rows})
    found, tests = {}, {}
    for stress in tier.stresses:
        suffix = "" if stress == "full" else f"_{stress}"
        by = {(row["arm"], (row["set"], row["seed"])): row for row in rows if row["stress"] == stress}
        for arm in tier.arms:
            for measure in ("macro_f1", "tail_recall", "ece", "nll"):
                found[f"{measure}_{arm}{suffix}"] = interval([by[arm, key][measure] for key in keys])
            others = {"hard", "uniform", "permuted", *(("balanced_permuted",) if arm == "kwls_balanced" else ())}
            for other in sorted(others - {arm}):
                gaps = [by[arm, key]["macro_f1"] - by[other, key]["macro_f1"] for key in keys]
                found[f"{arm}_minus_{other}{suffix}"] = interval(gaps)
                tests[f"p_{arm}_minus_{other}{suffix}"] = randomisation(gaps, RESAMPLES, 0)
    figures = {name: value for name, (value, _) in found.items()} | tests
    return figures, {name: bounds for name, (_, bounds) in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="frozen")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows-only", action="store_true", help="make the runs and write no result")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/softlabels"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    main(TIERS[options.tier], options.seeds, options.out, options.rows_only)
