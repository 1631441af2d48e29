"""Which loss trains a retriever best on the same negatives, and do enhanced labels help, more so in a cold start?

    python -m jobs.studies.retrieval.run [--tier adapter|layers] [--seeds 0 1 2 3 4] [--out runs/studies/retrieval]
        [--sizes 256 32] [--soft none le ...] [--backbones infonce_hard quadruplet] [--rows-only]

A part of medquad (1,500 documents without titles, 288/80/160 queries of different diseases; read from $RAYLM_DATA),
where the hard negatives are documents on the same disease that answer another question, and what BM25 finds; a teacher
(the untouched encoder) drops doubtful ones. adapter: a linear map over the frozen all-MiniLM trains, which is cheap
enough for all arms and five seeds. layers: the uppermost layer trains, a few arms. Every arm has the same batches,
negatives and encodings, and chooses its margin, temperature or strength by nDCG@10 on dev from equally many; test is
then read once. Differences are paired by query. Finished runs are lines of rows-TIER-SEED.jsonl, and the same command
goes on from them. Results: studies/results/retrieval.json and retrieval_layers.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jobs import results
from jobs.studies.retrieval import analysis, mnrl
from jobs.studies.retrieval.arms import ALPHAS, LOSSES, TIERS, Arms, Cell, Tier
from jobs.studies.retrieval.world import World, chinese, references, world


def main(tier: Tier, seeds: Sequence[int], out: Path, rows_only: bool) -> None:
    """Make what is missing, and write the result unless other runs are still to come."""
    out.mkdir(parents=True, exist_ok=True)
    made = world(out, dict(tier.settings))
    chosen = [row for seed in seeds for row in _seed(tier, made, seed, out)]
    if rows_only:
        return
    known = references(made) | ({"bm25_cmrc2018": chinese()} if tier.name == "retrieval" else {})
    figures, intervals = analysis.summarise(tier, chosen, known)
    print(results.write(f"studies/results/{tier.name}", figures, chosen, intervals=intervals, seeds=seeds))


def _seed(tier: Tier, made: World, seed: int, out: Path) -> Iterator[dict[str, Any]]:
    """The row of every arm's choice, from the rows of all its candidates."""
    log, arms = Log(out / f"rows-{tier.name}-{seed}.jsonl"), Arms(tier, made)
    for size in tier.sizes:
        best = {}
        for loss in tier.losses:
            tried = [log.row(arms.run, Cell(seed, size, loss, setting)) for setting in LOSSES[loss][1]]
            best[loss] = max(tried, key=lambda row: row["dev"])
            yield best[loss]
        theirs = [Cell(seed, size, "mnrl", setting) for setting in LOSSES["infonce"][1]]
        yield max((log.row(lambda cell: mnrl.run(arms, cell), cell) for cell in theirs), key=lambda row: row["dev"])
        for loss in tier.backbones:
            for soft in tier.soft:
                if soft != "none":
                    cells = [Cell(seed, size, loss, best[loss]["setting"], soft, alpha) for alpha in ALPHAS]
                    yield max((log.row(arms.run, cell) for cell in cells), key=lambda row: row["dev"])
        scored = " ".join(name for name in analysis.SCORED if name in tier.soft)
        yield log.row(lambda cell: analysis.agreement(arms, cell), Cell(seed, size, "agreement", {}, scored))


class Log:
    """Rows on disk by what they are of."""

    def __init__(self, file: Path) -> None:
        """Read what is there."""
        self.file = file
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        self.rows = {self._key(Cell(*(row[name] for name in Cell._fields))): row for row in found}

    def row(self, make: Callable[[Cell], dict[str, Any]], cell: Cell) -> dict[str, Any]:
        """A row that is there, or one made now."""
        name = self._key(cell)
        if name not in self.rows:
            row = make(cell)
            with self.file.open("a") as sink:
                sink.write(json.dumps(row) + "\n")
            self.rows[name] = row
            said = {part: row.get(part) for part in ("dev", "ndcg", "seconds")}
            print(f"{name} {said}", file=sys.stderr, flush=True)
        return self.rows[name]

    @staticmethod
    def _key(cell: Cell) -> str:
        return json.dumps(list(cell), sort_keys=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="adapter")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/studies/retrieval"))
    parser.add_argument("--sizes", type=int, nargs="+", help="training queries; the tier's own by default")
    parser.add_argument("--soft", nargs="+", help="soft targets; the tier's own by default")
    parser.add_argument("--backbones", nargs="+", help="losses that they are tried with; the tier's own by default")
    parser.add_argument("--rows-only", action="store_true", help="make the runs and write no result")
    parser.add_argument("--threads", type=int, default=1, help="of this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parts = {name: tuple(value) for name in ("sizes", "soft", "backbones") if (value := getattr(options, name))}
    main(replace(TIERS[options.tier], **parts), options.seeds, options.out, options.rows_only)
