"""The arms of the study: one set of branches a seed, and a fusion fitted anew on what each arm lets it see."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from jobs.studies.srm.sets import Set
from raylm.srm import branches, diagnosis
from raylm.srm.data import Part
from raylm.srm.material import Known
from raylm.srm.run import Run

KEPT = (
    "pairs", "pair_accuracy", "pair_nll", "ece", "length_matched_accuracy", "length_matched_pairs", "longer_wins",
)  # fmt: skip
"""Figures of an arm that are written down."""


def arms(run: Run, chosen: Set, seed: int) -> Iterator[dict[str, Any]]:
    """A row for every arm, measured on the test pairs of a run whose branches are trained."""
    whole = run.values.clone()
    names = [spec.name for spec in run.structure.specs]
    dimensions = [name for name in names if name not in ("quality", "wide")]
    test = run.data.test
    assert test is not None

    def keep(*kept: str) -> torch.Tensor:
        out = [place for place, name in enumerate(names) if name not in kept]
        values = whole.clone()
        values[:, out] = math.nan
        return values

    full = ("quality", *dimensions)
    agreed = {"agreement": _agreement(run, test)}
    yield _row(run, "scalar", keep("quality"), test)
    yield _row(run, "scalar_wide", keep("wide"), test)
    yield _row(run, "srm", keep(*full), test, explain=True) | agreed
    yield _row(run, "srm_without_quality", keep(*dimensions), test)
    yield _row(run, "shuffled", _shuffled(keep(*full), names, dimensions, run, seed), test)
    yield _row(run, "filler", _noise(keep(*full), names, dimensions, seed), test)
    for name in dimensions:
        yield _row(run, f"without_{name}", keep(*(other for other in full if other != name)), test)
        yield _row(run, f"only_{name}", keep(name), test)
    if chosen.oracle:
        yield _row(run, "oracle", _oracle(keep(*full), names, run), test)
    yield {"arm": "logistic", "pair_accuracy": _logistic(whole, [names.index(name) for name in full], run)}
    yield {"arm": "length", "pair_accuracy": _length(run)}


def text_arms(run: Run, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of a run whose fusion reads the branches' words behind the prompt, as published: the branches' own, those of
    other texts, and noise of the same form."""
    whole, names = run.values.clone(), [spec.name for spec in run.structure.specs]
    dimensions = [name for name in names if name not in ("quality", "wide")]
    whole[:, names.index("wide")] = math.nan
    test = run.data.test
    assert test is not None
    shuffled = _shuffled(whole.clone(), names, dimensions, run, seed)
    for arm, values in (
        ("text", whole), ("text_shuffled", shuffled), ("text_filler", _noise(whole.clone(), names, dimensions, seed)),
    ):  # fmt: skip
        yield _row(run, arm, values, test)


def elsewhere(run: Run, known: Known, pairs: Sequence[dict[str, Any]]) -> float:
    """Accuracy on pairs of another source, by the branches and the fusion as they are."""
    texts = [(row["prompt"], row[side]) for row in pairs for side in ("chosen", "rejected")]
    features, structure = known(texts), run.structure
    prompts, responses = zip(*texts, strict=True)
    with torch.no_grad():
        inputs = structure.standardised(prompts, responses, features.raw, features.contexts)
        values, _ = branches.evaluate(structure.branches, inputs)
        values[:, ~torch.isfinite(run.values).any(0)] = math.nan
        scores = structure.fusion(inputs, values, False).score.view(-1, 2)
    return diagnosis.accuracy((scores[:, 0] - scores[:, 1]).numpy())


def _row(run: Run, arm: str, values: torch.Tensor, test: Part, explain: bool = False) -> dict[str, Any]:
    run.refit(values)
    scored, pairs = run.scored(test)
    figures = diagnosis.measure(scored, pairs)
    row = {"arm": arm, **{name: figures[name] for name in KEPT}, "gate": run.gate}
    decides = deciding(run, test)
    if decides is not None:
        differences = scored.scores[pairs[:, 0]] - scored.scores[pairs[:, 1]]
        row["by_dimension"] = {
            name: diagnosis.accuracy(differences[decides == name]) for name in sorted(set(decides.tolist()) - {""})
        }
        if explain:
            shares = scored.attributions[pairs[:, 0]] - scored.attributions[pairs[:, 1]]
            row |= _attribution(shares, scored.names, decides, np.isfinite(scored.values).any(0))
    return row


def deciding(run: Run, part: Part) -> np.ndarray | None:
    """The dimension that decides each pair, [pairs]: as planted, or the one whose ratings differ most; or None."""
    planted = getattr(run, "decides", None)
    if planted is not None:
        return np.array([planted[run.data.texts[place][0]] for place in part.pairs[:, 0]])
    if not len(part.rated) or not np.isin(part.pairs, part.rated).all():
        return None
    ratings = np.full((len(run.data.texts), len(run.data.columns)), np.nan)
    ratings[part.rated] = (part.ratings - np.nanmean(part.ratings, 0)) / np.nanstd(part.ratings, 0)
    gaps = ratings[part.pairs[:, 0]] - ratings[part.pairs[:, 1]]
    order = np.sort(gaps, 1)
    clear = (order[:, -1] > 0.5) & (order[:, -1] - order[:, -2] > 0.5)  # half a deviation ahead of the next
    return np.where(clear, np.array(run.data.columns)[gaps.argmax(1)], "")


def _attribution(
    shares: np.ndarray, names: Sequence[str], decides: np.ndarray, present: np.ndarray
) -> dict[str, float]:
    """How often the branch with the largest share is the deciding dimension's, and how often chance would hit it."""
    wanted = [decides == "", decides != ""]
    top = np.array([name.removeprefix("tool_") for name in names])[np.where(present, shares, -np.inf).argmax(1)]
    hits = np.array(
        [int(sum(name.removeprefix("tool_") == word for name in np.array(names)[present])) for word in decides]
    )
    return {
        "attribution_top1": float((top == decides)[wanted[1]].mean()),
        "attribution_chance": float((hits / present.sum())[wanted[1]].mean()),
        "attributed_pairs": int(wanted[1].sum()),
    }


def _agreement(run: Run, test: Part) -> dict[str, Any]:
    scored, _ = run.scored(test)
    return run.agreement(scored, test)


def _shuffled(values: torch.Tensor, names: Sequence[str], own: Sequence[str], run: Run, seed: int) -> torch.Tensor:
    """Every branch but the preference head says of each text what it says of another text of the same part."""
    generator = torch.Generator().manual_seed(seed)
    train = torch.zeros(len(values), dtype=torch.bool)
    train[torch.from_numpy(run.material.trained)] = True
    for places in (train.nonzero().flatten(), (~train).nonzero().flatten()):
        for name in own:
            order = places[torch.randperm(len(places), generator=generator)]
            values[places, names.index(name)] = values[order, names.index(name)]
    return values


def _noise(values: torch.Tensor, names: Sequence[str], own: Sequence[str], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    for name in own:
        values[:, names.index(name)] = torch.randn(len(values), generator=generator)
    return values


def _oracle(values: torch.Tensor, names: Sequence[str], run: Run) -> torch.Tensor:
    """Branches that learn ratings say the ratings themselves."""
    test = run.data.test
    assert test is not None
    for part in (run.data.train, run.data.dev, test):
        for column, name in enumerate(run.data.columns):
            values[torch.from_numpy(part.rated), names.index(name)] = torch.from_numpy(part.ratings[:, column])
    return values


def _logistic(values: torch.Tensor, columns: Sequence[int], run: Run) -> float:
    """Logistic regression on differences of branch values: a fusion whose weights no prompt changes."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    test = run.data.test
    assert test is not None
    table = torch.nan_to_num(values[:, list(columns)]).double().numpy()
    table = StandardScaler().fit(table[run.material.trained]).transform(table)
    differences = [table[part.pairs[:, 0]] - table[part.pairs[:, 1]] for part in (run.data.train, test)]
    both = np.concatenate([differences[0], -differences[0]])
    labels = np.repeat([1, 0], len(differences[0]))
    model = LogisticRegression(fit_intercept=False, max_iter=1000).fit(both, labels)
    return diagnosis.accuracy(model.decision_function(differences[1]))


def _length(run: Run) -> float:
    """The longer response, or the shorter one where that is right more often on the training pairs."""
    test = run.data.test
    assert test is not None
    words = np.array([len(text.split()) for _, text in run.data.texts], dtype=float)
    signs = [words[part.pairs[:, 0]] - words[part.pairs[:, 1]] for part in (run.data.train, test)]
    longer = diagnosis.accuracy(signs[0]) >= 0.5
    return diagnosis.accuracy(signs[1] if longer else -signs[1])
