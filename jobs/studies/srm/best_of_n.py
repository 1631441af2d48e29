"""Does picking by the reward model beat random choice and majority vote among the same samples?

    python -m jobs.studies.srm.best_of_n [--problems N] [--samples N] [--seeds 0 1 2] [--threads N]
        [--out runs/studies/srm]

Chains of sums, answered by the scripted policy, which slips in every fifth operation: micro scale, and the same samples
(so the same tokens) for every rule. The model learns from right against wrong responses to half of the problems and
picks on the other half, with all branches, and without the arithmetic check, which sees every slip of this policy and
so is nearly a verifier here. A pick is one of the distinct responses; right ones are often the same text, so a rule
that knows nothing does worse than a random sample. srm_vote sums the probabilities of equal answers. Results:
studies/results/srm_best_of_n.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs import results
from jobs.studies.epi.analysis import interval
from jobs.studies.srm.sets import Store
from raylm.config import build
from raylm.llm import models
from raylm.llm.chat import prompt_ids
from raylm.llm.config import EngineConfig, ScriptConfig
from raylm.llm.protocol import Sampling
from raylm.llm.scripted import ScriptedEngine
from raylm.srm.config import RewardConfig
from raylm.srm.run import Run
from raylm.tasks.answers import extract_answer

BRANCHES = [{"name": "quality"}, {"name": "arithmetic", "kind": "tool"}, {"name": "length", "kind": "tool"}]
RULES = ("random", "majority", "srm", "srm_vote", "srm_unchecked", "oracle")


def main(options: argparse.Namespace) -> None:
    """Sample, train and pick for every seed, and write the result."""
    questions = _questions(options.problems)
    samples = asyncio.run(_sample([question for question, _ in questions], options.samples))
    model = str(models.resolve_encoder("all-minilm-l6-v2").path)
    store = Store(model, options.out / "features" / "best_of_n", 128)
    rows = [
        {"seed": seed, **row} for seed in options.seeds for row in _seed(seed, questions, samples, store, options.out)
    ]
    found = {}
    for rule in RULES:
        by_seed = [[row[rule] for row in rows if row["seed"] == seed] for seed in options.seeds]
        found[f"accuracy_{rule}"] = interval([float(np.mean(each)) for each in by_seed])
    for other in ("random", "majority"):
        for rule in ("srm", "srm_vote", "srm_unchecked"):
            by_seed = [[row[rule] - row[other] for row in rows if row["seed"] == seed] for seed in options.seeds]
            found[f"{rule}_minus_{other}"] = interval([float(np.mean(each)) for each in by_seed])
    figures = {name: value for name, (value, _) in found.items()} | {"samples": options.samples}
    bounds = {name: low_high for name, (_, low_high) in found.items()}
    print(results.write("studies/results/srm_best_of_n", figures, rows, intervals=bounds, seeds=options.seeds))


def _seed(
    seed: int, questions: Sequence[tuple[str, str]], samples: dict[str, list[str]], store: Store, out: Path
) -> list[dict[str, Any]]:
    """What every rule picks for each test problem of a seed: 1 for a right response."""
    order = random.Random(seed).sample(range(len(questions)), len(questions))
    parts = [questions[place] for place in order[::2]], [questions[place] for place in order[1::2]]
    path = out / f"best-of-n-{seed}.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in _pairs(parts[0], samples)))
    tested = out / f"best-of-n-test-{seed}.jsonl"
    tested.write_text("".join(json.dumps(pair) + "\n" for pair in _pairs(parts[1], samples)))
    config = build(RewardConfig, {
        "pairs": str(path), "test_pairs": str(tested), "branches": BRANCHES, "seed": seed, "max_length": 128,
        "folds": 3, "epochs": 8, "fusion_epochs": 8,
    })  # fmt: skip
    run = Run(config, str(models.resolve_encoder("all-minilm-l6-v2").path), known=store)
    run.train(lambda row: None, lambda step, state: None)
    scores = _scores(run)
    values = run.values.clone()
    values[:, 1] = torch.nan
    run.refit(values)
    return [_picked(samples[question], gold, question, (scores, _scores(run))) for question, gold in parts[1]]


def _picked(
    texts: Sequence[str], gold: str, question: str, scored: tuple[dict[tuple[str, str], float], ...]
) -> dict[str, float]:
    right = [float(extract_answer(text) == gold) for text in texts]
    picked = {"random": float(np.mean(right)), "oracle": max(right)}
    votes = Counter(extract_answer(text) for text in texts)
    picked["majority"] = float(votes.most_common(1)[0][0] == gold)
    for name, scores in zip(("srm", "srm_unchecked"), scored, strict=True):
        # A problem whose samples are all right or all wrong leaves nothing to pick.
        own = [scores.get((question, text), 0.0) for text in texts]
        picked[name] = right[int(np.argmax(own))]
    worth: dict[str, float] = defaultdict(float)
    for text in texts:
        worth[extract_answer(text)] += 1 / (1 + np.exp(-scored[0].get((question, text), 0.0)))
    picked["srm_vote"] = float(max(worth, key=lambda answer: worth[answer]) == gold)
    return picked


def _scores(run: Run) -> dict[tuple[str, str], float]:
    places = np.arange(len(run.data.texts))
    found, _ = run.fused(places, run.values)
    return {(str(prompt), text): float(score) for (prompt, text), score in zip(run.data.texts, found, strict=True)}


def _pairs(questions: Sequence[tuple[str, str]], samples: dict[str, list[str]]) -> list[dict[str, str]]:
    """Every right response against wrong ones, so that each response is in a pair where there are both."""
    found = []
    for question, gold in questions:
        sides: dict[bool, list[str]] = {True: [], False: []}
        for text in dict.fromkeys(samples[question]):
            sides[extract_answer(text) == gold].append(text)
        for number in range(max(map(len, sides.values())) if all(sides.values()) else 0):
            chosen, rejected = (own[number % len(own)] for own in (sides[True], sides[False]))
            found.append({"prompt": question, "chosen": chosen, "rejected": rejected})
    return found


def _questions(count: int) -> list[tuple[str, str]]:
    draws = random.Random(0)
    found = []
    for _ in range(count):
        terms = [draws.randint(10, 99) for _ in range(draws.randint(4, 6))]
        found.append((f"What is {' + '.join(map(str, terms))}?", str(sum(terms))))
    return list(dict(found).items())


async def _sample(questions: Sequence[str], count: int) -> dict[str, list[str]]:
    tokenizer = models.load_tokenizer(models.resolve("micro").path)
    engine = ScriptedEngine(EngineConfig(kind="scripted", model="micro", script=ScriptConfig(accuracy=0.8)), tokenizer)
    found = {}
    for number, question in enumerate(questions):
        ids = prompt_ids(tokenizer, [{"role": "user", "content": question}])
        said = await engine.generate(ids, Sampling(n=count, temperature=1.0, max_tokens=128, seed=number))
        found[question] = [completion.text for completion in said.completions]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=120)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/srm"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    main(options)
