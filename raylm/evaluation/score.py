"""From judgements to figures: accuracy with its interval, pass@k and maj@k, and the paired comparison of two runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from raylm.errors import UserError
from raylm.evaluation.stats import bootstrap, majority, mcnemar_exact, pass_at_k, wilson
from raylm.records import Judgement, Problem
from raylm.seeds import stable_seed
from raylm.storage import Store

Key = tuple[str, str]
"""(suite, problem id)"""


def score(rows: Sequence[Judgement]) -> dict[str, Any]:
    """Figures of every suite, and under `tasks` those of each of its tasks, in the order of the rows.

    Each holds `questions`, `correct`, `accuracy` and its Wilson 95% `interval` (greedy responses; an unverifiable
    one is not correct), `unverifiable` and `unfinished` (greedy responses that ran out of tokens), `prompt_tokens`
    and `generated_tokens` (all responses), and with several samples `sampled`, `pass_at` {k: estimate} and `majority`.
    """
    suites: dict[str, Any] = {}
    for suite, mine in _grouped(rows, "suite").items():
        suites[suite] = _figures(mine)
        suites[suite]["tasks"] = {task: _figures(part) for task, part in _grouped(mine, "task").items()}
    return suites


def compare(before: Sequence[Judgement], after: Sequence[Judgement], resamples: int, seed: int) -> dict[str, Any]:
    """Figures of the paired comparison of greedy responses, by suite and, under `tasks`, by task.

    Each holds `questions`, accuracies `before` and `after`, their `difference` with the bootstrap 95% `interval`
    over questions, the numbers of questions `fixed` and `broken`, and McNemar's exact `p_value`. Questions that only
    one side answered are left out and counted in `unpaired`.
    """
    old = {_key(row): row for row in before if row.sample == 0}
    new = [row for row in after if row.sample == 0]
    suites: dict[str, Any] = {}
    for suite, mine in _grouped(new, "suite").items():
        paired = [(old[_key(row)], row) for row in mine if _key(row) in old]
        missing = sum(key[0] == suite for key in old) - len(paired)
        suites[suite] = {**_difference(paired, resamples, seed, suite), "unpaired": len(mine) - len(paired) + missing}
        tasks: dict[str, list[tuple[Judgement, Judgement]]] = {}
        for pair in paired:
            tasks.setdefault(pair[1].task, []).append(pair)
        suites[suite]["tasks"] = {
            task: _difference(part, resamples, seed, f"{suite}/{task}") for task, part in tasks.items()
        }
    return suites


def check_same_questions(baseline: Store, rows: Sequence[Judgement], problems: dict[str, list[Problem]]) -> None:
    """Refuse to compare runs over different questions.

    Questions that the baseline set aside with an error count as its questions.

    Raises:
        UserError: a question or gold answer is on one side only.
    """
    manifest = baseline.manifest()
    failed = {(suite, id) for suite, id in (manifest.figures.get("failed", []) if manifest else [])}
    here = {(suite, item.id): (item.question, item.answer) for suite, items in problems.items() for item in items}
    there = {_key(row): (row.question, row.gold) for row in rows}
    only_here = sorted(here.keys() - there.keys() - failed)
    only_there = sorted((there.keys() | failed) - here.keys())
    changed = sorted(key for key in here.keys() & there.keys() if here[key] != there[key])
    found = [
        f"{len(keys)} {what} ({', '.join('/'.join(key) for key in keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for keys, what in ((only_here, "only here"), (only_there, "only there"), (changed, "with another text or gold"))
        if keys
    ]
    if found:
        raise UserError(
            f"baseline {baseline.url}: its questions differ from this run's: {'; '.join(found)}; "
            "evaluate both models on the same suites"
        )


def _key(row: Judgement) -> Key:
    return row.suite, row.problem_id


def _grouped(rows: Iterable[Judgement], name: str) -> dict[str, list[Judgement]]:
    groups: dict[str, list[Judgement]] = {}
    for row in rows:
        groups.setdefault(getattr(row, name), []).append(row)
    return groups


def _figures(rows: Sequence[Judgement]) -> dict[str, Any]:
    greedy = [row for row in rows if row.sample == 0]
    correct = sum(row.verdict == "correct" for row in greedy)
    figures: dict[str, Any] = {
        "questions": len(greedy),
        "correct": correct,
        "accuracy": correct / len(greedy) if greedy else 0.0,
        "interval": list(wilson(correct, len(greedy))),
        "unverifiable": sum(row.verdict == "unverifiable" for row in greedy),
        "unfinished": sum(row.finish_reason == "length" for row in greedy),
        # One request for the greedy response and one for all sampled ones, so a prompt is read once or twice.
        "prompt_tokens": sum(row.prompt_tokens for row in rows if row.sample <= 1),
        "generated_tokens": sum(row.generated_tokens for row in rows),
    }
    by_question: dict[Key, list[Judgement]] = {}
    for row in rows:
        if row.sample > 0:
            by_question.setdefault(_key(row), []).append(row)
    if by_question:
        figures.update(_sampled(list(by_question.values())))
    return figures


def _sampled(questions: Sequence[Sequence[Judgement]]) -> dict[str, Any]:
    """pass@k and maj@n over the sampled responses alone: the greedy one is not a draw from their distribution."""
    size = min(len(rows) for rows in questions)
    ks = sorted({1 << power for power in range(size.bit_length()) if 1 << power <= size} | {size})
    right = [(len(rows), sum(row.verdict == "correct" for row in rows)) for rows in questions]
    winners = [(rows, majority([row.answer for row in rows])) for rows in questions]
    voted = sum(index is not None and rows[index].verdict == "correct" for rows, index in winners)
    return {
        "sampled": size,
        "pass_at": {str(k): sum(pass_at_k(n, c, k) for n, c in right) / len(right) for k in ks},
        "majority": voted / len(questions),
    }


def _difference(pairs: Sequence[tuple[Judgement, Judgement]], resamples: int, seed: int, label: str) -> dict[str, Any]:
    before = [old.verdict == "correct" for old, _ in pairs]
    after = [new.verdict == "correct" for _, new in pairs]
    changes = [int(new) - int(old) for old, new in zip(before, after, strict=True)]
    fixed, broken = changes.count(1), changes.count(-1)
    total = max(1, len(pairs))
    return {
        "questions": len(pairs),
        "before": sum(before) / total,
        "after": sum(after) / total,
        "difference": sum(changes) / total,
        "interval": list(bootstrap(changes, resamples, stable_seed(seed, "bootstrap", label)))
        if pairs
        else [-1.0, 1.0],
        "fixed": fixed,
        "broken": broken,
        "p_value": mcnemar_exact(fixed, broken),
    }
