"""Preference pairs and dimension ratings: read, checked, and kept apart by prompt."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylm.errors import UserError
from raylm.rows import Rows, read_rows
from raylm.srm.backbone import Prompt
from raylm.srm.config import BranchConfig, RewardConfig

Text = tuple[Prompt, str]
"""A prompt and a response."""


@dataclass(frozen=True)
class Part:
    """Pairs and rated texts, as places in the table of texts."""

    pairs: np.ndarray
    """[pairs, 2], int64: the text that was chosen, the one that was rejected."""
    margins: np.ndarray
    """[pairs], float32: how much better the chosen one is, 0 where nothing says."""
    rated: np.ndarray
    """[ratings], int64."""
    ratings: np.ndarray
    """[ratings, columns], float32, NaN where a rating is missing."""

    def within(self, held: np.ndarray) -> Part:
        """What lies wholly among the texts that a mask, [texts], marks."""
        pairs, rated = held[self.pairs].all(1) if len(self.pairs) else np.zeros(0, bool), held[self.rated]
        return Part(self.pairs[pairs], self.margins[pairs], self.rated[rated], self.ratings[rated])


@dataclass(frozen=True)
class Data:
    """Everything that a run reads."""

    texts: list[Text]
    """Each once."""
    groups: list[str]
    """Digest of each text's prompt (or of its row's `group`): what folds and splits keep together."""
    columns: tuple[str, ...]
    """Names of the ratings, in the order of the branches that learn them."""
    train: Part
    dev: Part
    test: Part | None
    digest: str
    overlaps: int
    """Training pairs and ratings left out because dev or test holds their prompts."""
    contradictions: int
    """Pairs whose opposite is there too."""


class Table:
    """Texts, each once, and where they are."""

    def __init__(self, columns: Sequence[BranchConfig]) -> None:
        self.columns = [spec for spec in columns if spec.column]
        self.texts: list[Text] = []
        self.groups: list[str] = []
        self.places: dict[tuple[str, str], int] = {}

    def place(self, prompt: Prompt, response: str, group: str) -> int:
        """Where a text is; a new one is put at the end."""
        key = (prompt if isinstance(prompt, str) else json.dumps(list(prompt)), response)
        if key not in self.places:
            self.places[key] = len(self.texts)
            self.texts.append((prompt, response))
            self.groups.append(group)
        return self.places[key]

    def pairs(self, found: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Places and margins of preference rows.

        Raises:
            UserError: a row lacks a side, its sides are the same, or a margin is no number.
        """
        places, margins = [], []
        for where, row in found:
            prompt, group = prompt_of(where, row)
            sides = [response_of(where, row, field) for field in ("chosen", "rejected")]
            if sides[0] == sides[1]:
                raise UserError(f"{where}: chosen and rejected are the same; leave the row out")
            margin = row.get("margin", 0.0)
            if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not math.isfinite(margin):
                raise UserError(f"{where}: margin is {margin!r}; it must be a number")
            places.append([self.place(prompt, side, group) for side in sides])
            margins.append(float(margin))
        return np.array(places, dtype=np.int64).reshape(-1, 2), np.array(margins, dtype=np.float32)

    def ratings(self, found: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Places and values of rating rows.

        Raises:
            UserError: a row is malformed, or a rating is no number or lies outside its branch's range.
        """
        places, values = [], []
        for where, row in found:
            prompt, group = prompt_of(where, row)
            scores = row.get("scores")
            if not isinstance(scores, Mapping):
                raise UserError(f"{where}: scores is {scores!r}; it must hold ratings by name")
            values.append([_rating(where, spec, scores.get(spec.column)) for spec in self.columns])
            places.append(self.place(prompt, response_of(where, row, "response"), group))
        return np.array(places, dtype=np.int64), np.array(values, dtype=np.float32).reshape(len(places), -1)


def load(config: RewardConfig) -> Data:
    """Read all files, set dev aside by prompt, and leave out of train what dev or test holds.

    Raises:
        UserError: a row is malformed, there is nothing to learn from, or a rating does not vary.
    """
    table, digests, parts = Table(config.branches), [], {}
    for part in ("", "dev_", "test_"):
        paths = {name: getattr(config, part + name) for name in ("pairs", "ratings")}
        if any(paths.values()):
            parts[part], digest = _part(table, part, paths, config)
            digests.append(digest)
    if "" not in parts or not (len(parts[""].pairs) or len(parts[""].rated)):
        raise UserError("pairs and ratings are both empty; give one of them, or pairs_from to make pairs of ratings")
    groups = np.array(table.groups)
    train, dev, test = parts[""], parts.get("dev_"), parts.get("test_")
    held = _held(groups, [part for part in (dev, test) if part is not None])
    clean = train.within(~held)
    overlaps = len(train.pairs) - len(clean.pairs) + len(train.rated) - len(clean.rated)
    if dev is None:
        aside = share(table.groups, config.dev_share, config.seed)
        clean, dev = clean.within(~aside), clean.within(aside)
    _check(clean, dev, config, table.columns)
    keys = {tuple(pair) for pair in clean.pairs.tolist()}
    opposite = sum((b, a) in keys for a, b in keys) // 2
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
    columns = tuple(spec.name for spec in table.columns)
    return Data(table.texts, table.groups, columns, clean, dev, test, digest, overlaps, opposite)


def fold_of(groups: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """The fold of each text, [texts]: a function of its prompt alone, so that a prompt is never in two."""
    return np.array([_draw(group, f"fold{seed}") % folds for group in groups], dtype=np.int64)


def share(groups: Sequence[str], part: float, seed: int) -> np.ndarray:
    """Marks about a share of the prompts, at least one, [texts]."""
    draws = {group: _draw(group, f"dev{seed}") for group in groups}
    count = max(1, round(part * len(draws)))
    chosen = set(sorted(draws, key=lambda group: draws[group])[:count])
    return np.array([group in chosen for group in groups], dtype=bool)


def from_ratings(
    places: np.ndarray, worth: np.ndarray, groups: Sequence[str], gap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of texts on one prompt whose worth differs by more than a gap, better one first, and by how much.

    Args:
        places: [ratings], of texts.
        worth: [ratings], NaN where unknown.
    """
    by_group: dict[str, list[int]] = defaultdict(list)
    for row, place in enumerate(places):
        if np.isfinite(worth[row]):
            by_group[groups[place]].append(row)
    pairs, margins = [], []
    for own in by_group.values():
        for n, first in enumerate(own):
            for second in own[n + 1 :]:
                difference = float(worth[first] - worth[second])
                if abs(difference) > gap and places[first] != places[second]:
                    better, worse = (first, second) if difference > 0 else (second, first)
                    pairs.append([places[better], places[worse]])
                    margins.append(abs(difference))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(margins, dtype=np.float32)


def _part(table: Table, part: str, paths: dict[str, str], config: RewardConfig) -> tuple[Part, str]:
    pairs, margins = np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.float32)
    rated, ratings = np.zeros(0, dtype=np.int64), np.zeros((0, len(table.columns)), dtype=np.float32)
    digests = []
    if paths["pairs"]:
        found, digest = read_rows(part + "pairs", paths["pairs"])
        pairs, margins = table.pairs(found)
        digests.append(digest)
    if paths["ratings"]:
        found, digest = read_rows(part + "ratings", paths["ratings"])
        rated, ratings = table.ratings(found)
        digests.append(digest)
        if config.pairs_from:
            worth = _worth(found, config.pairs_from)
            made = from_ratings(rated, worth, table.groups, config.min_gap)
            pairs, margins = np.concatenate([pairs, made[0]]), np.concatenate([margins, made[1]])
    return Part(pairs, margins, rated, ratings), "".join(digests)


def _worth(found: Rows, column: str) -> np.ndarray:
    """What pairs are made of: a rating, or the mean of all of them after each is standardised."""
    if column != "mean":
        values = [row["scores"].get(column) for _, row in found]
        if all(value is None for value in values):
            raise UserError(f"pairs_from={column}: no row of the ratings has it")
        return np.array([math.nan if value is None else float(value) for value in values])
    names = sorted({name for _, row in found for name in row["scores"]})
    table = np.array([[_or_nan(row["scores"].get(name)) for name in names] for _, row in found])
    return np.nanmean((table - np.nanmean(table, 0)) / np.maximum(np.nanstd(table, 0), 1e-9), 1)


def _or_nan(value: Any) -> float:
    return math.nan if value is None else float(value)


def _held(groups: np.ndarray, parts: Sequence[Part]) -> np.ndarray:
    """Marks all texts on prompts that some parts hold."""
    places = [place for part in parts for place in (*part.pairs.flatten(), *part.rated)]
    return (
        np.isin(groups, np.unique(groups[np.array(places, dtype=np.int64)])) if places else np.zeros(len(groups), bool)
    )


def _check(train: Part, dev: Part, config: RewardConfig, columns: Sequence[BranchConfig]) -> None:
    if config.retrain:
        columns = [spec for spec in columns if spec.name in config.retrain]
    learns = [spec.name for spec in config.branches if spec.trained and not spec.column]
    learns = [name for name in learns if not config.retrain or name in config.retrain]
    if learns and not len(train.pairs):
        raise UserError(
            f"branch {learns[0]} learns preferences, and there are no training pairs; give pairs=, or pairs_from= to "
            "make them of ratings"
        )
    if not len(train.pairs) and not config.retrain:
        raise UserError("the fusion learns from preference pairs, and there are none; give pairs=, or pairs_from=")
    for spec in columns:
        place = [name for name in config.branches if name.column].index(spec)
        values = train.ratings[:, place] if len(train.rated) else np.zeros(0)
        known = values[np.isfinite(values)]
        if not len(known):
            raise UserError(f"branch {spec.name}: no training row has the rating {spec.column!r}; check its column")
        if float(known.std()) == 0.0:
            raise UserError(
                f"branch {spec.name}: all {len(known)} training ratings of {spec.column!r} are {known[0]:g}; a "
                "dimension without variance cannot be learned: leave the branch out"
            )
    if not len(dev.pairs) and not config.retrain:
        raise UserError("no dev pairs: too few prompts for dev_share; raise it, or give dev_pairs=")


def prompt_of(where: str, row: Mapping[str, Any]) -> tuple[Prompt, str]:
    """A row's prompt, and the digest of what splits keep together.

    Raises:
        UserError: it is neither a text nor a chat, or it is empty.
    """
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        found: Prompt = prompt
    else:
        found = _chat(where, prompt)
    text = found if isinstance(found, str) else json.dumps(list(found))
    return found, hashlib.sha256(str(row.get("group") or text).encode()).hexdigest()[:16]


def _chat(where: str, prompt: Any) -> list[dict[str, str]]:
    def is_turn(turn: Any) -> bool:
        return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))

    if (
        not isinstance(prompt, list)
        or not prompt
        or not all(map(is_turn, prompt))
        or not any(turn["content"].strip() for turn in prompt)
    ):
        raise UserError(f"{where}: prompt is {str(prompt)[:60]!r}; it must be a text or a list of role and content")
    return [{"role": turn["role"], "content": turn["content"]} for turn in prompt]


def response_of(where: str, row: Mapping[str, Any], field: str) -> str:
    """A row's response; of a chat, its last turn.

    Raises:
        UserError: it is missing or empty.
    """
    value = row.get(field)
    if isinstance(value, list) and value:  # a chat: its last turn
        value = _chat(where, value)[-1]["content"]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {field} is {value!r}; it must be a text that is not empty")
    return value


def _rating(where: str, spec: BranchConfig, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: rating {spec.column} is {value!r}; it must be a number")
    low, high = (math.inf * sign if bound is None else bound for bound, sign in ((spec.low, -1), (spec.high, 1)))
    if not low <= value <= high:
        raise UserError(
            f"{where}: rating {spec.column} is {value:g}, outside the range {low:g} to {high:g} of branch {spec.name}"
        )
    return float(value)


def _draw(group: str, salt: str) -> int:
    return int(hashlib.sha256(f"{salt}:{group}".encode()).hexdigest()[:12], 16)


def ranged(specs: Sequence[BranchConfig], data: Data) -> tuple[BranchConfig, ...]:
    """Branches with the ranges that the training ratings have, where the config names none."""
    return tuple(_ranged(spec, data) if spec.name in data.columns else spec for spec in specs)


def _ranged(spec: BranchConfig, data: Data) -> BranchConfig:
    values = data.train.ratings[:, data.columns.index(spec.name)]
    low, high = (bound if bound is not None else float(found) for bound, found in (
        (spec.low, np.nanmin(values)), (spec.high, np.nanmax(values)),
    ))  # fmt: skip
    return spec.model_copy(update={"low": low, "high": high})
