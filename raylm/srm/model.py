"""The reward model's public face, and the directory that it is kept in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from raylm import __version__
from raylm.errors import UserError
from raylm.llm import models
from raylm.srm import backbone
from raylm.srm.backbone import Prompt
from raylm.srm.config import BranchConfig, FusionConfig, WriterConfig
from raylm.srm.structure import Structure

SETTINGS, WEIGHTS, FORMAT = "srm.json", "srm.safetensors", 1
BATCH, CPU_BATCH = 64, 16
"""Pairs in one forward pass; on a CPU padding costs more than calls do."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a reward model says of one response."""

    score: float
    """Log-odds that it is preferred to an average response; the difference of two scores is the log-odds that the first
    is preferred to the second."""
    dimensions: dict[str, float]
    """Each branch's value, in its own unit; one that has nothing to say of the text is left out."""
    attribution: dict[str, float]
    """What each branch adds to the score against its reference, 0 for one that is left out. With the additive fusion
    score = bias + sum(attribution); with the text fusion each is the score less the score without that branch."""
    truncated: bool
    """Whether the prompt or the response was longer than the context, and was cut."""
    flags: tuple[str, ...]
    """`prompt_truncated`, `response_truncated`, `absent:BRANCH` (nothing to say), `failed:BRANCH` (an error)."""


class RewardModel:
    """Scores responses, and says why."""

    def __init__(
        self, structure: Structure, name: str, revision: str, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Wrap a structure; `load` is the usual way."""
        self.structure, self.name, self.revision = structure.eval(), name, revision
        self.settings = dict(settings or {})

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu", own_tools: bool = False) -> RewardModel:
        """A saved reward model.

        Args:
            path: directory that `raylm train-reward` wrote (its `model` folder).
            device: of torch.
            own_tools: whether to import the functions that the model names as tools beside those built in.

        Raises:
            UserError: the directory is none, is of another format, or its weights do not fit its settings.
        """
        place = Path(path)
        settings = read_settings(place)
        body = backbone.load(place, max_length=settings["max_length"], keep=settings["keep"], device=device)
        specs = [BranchConfig.model_validate(item) for item in settings["branches"]]
        structure = Structure(body, specs, FusionConfig.model_validate(settings["fusion"]), own_tools=own_tools)
        weights = load_file(place / WEIGHTS)
        expected = {name: value.shape for name, value in structure.own_state().items()}
        if {name: value.shape for name, value in weights.items()} != expected:
            raise UserError(f"{place / WEIGHTS}: its tensors do not fit {SETTINGS}; copy the model again")
        structure.load_state_dict(weights, strict=False)
        structure.set_writer(WriterConfig.model_validate(settings.get("writer", {})))
        revision = models.resolve_encoder(str(place)).ref.revision
        return cls(structure.to(device), settings.get("name") or place.name, revision, settings)

    def save(self, folder: str | Path) -> None:
        """Write a directory that `load` reads; the backbone in it is one that transformers loads by itself."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        body = self.structure.backbone
        body.model.save_pretrained(place)
        body.tokenizer.save_pretrained(place)
        save_file({name: value.contiguous() for name, value in self.structure.own_state().items()}, place / WEIGHTS)
        said = {
            "format": FORMAT, "name": self.name, "max_length": body.max_length, "keep": body.keep,
            "branches": [spec.model_dump(mode="json") for spec in self.structure.specs],
            "fusion": self.structure.fusion_config.model_dump(mode="json"), "raylm": __version__,
        }  # fmt: skip
        kept = {key: value for key, value in self.settings.items() if key not in said}
        (place / SETTINGS).write_text(json.dumps({**kept, **said}, indent=1, sort_keys=True) + "\n")

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the branches, in order."""
        return tuple(spec.name for spec in self.structure.specs)

    @property
    def bias(self) -> float:
        """Score of a response that is average in every dimension (additive fusion)."""
        return self.structure.bias

    def score(self, prompt: Prompt, responses: Sequence[str], *, explain: bool = True) -> list[Score]:
        """Scores of some responses to one prompt; see `score_batch`."""
        return self.score_batch([(prompt, response) for response in responses], explain=explain)

    def score_batch(
        self, pairs: Sequence[tuple[Prompt, str]], *, explain: bool = True, batch: int | None = None
    ) -> list[Score]:
        """Scores of prompts and responses, in the order given. A score does not depend on what else is scored with it.

        Args:
            pairs: each a prompt (a text, or {role, content} messages) and a response.
            explain: False spares the text fusion its attributions, which are 0 then.
            batch: pairs in one padded forward pass; None takes `CPU_BATCH` or `BATCH`.

        Raises:
            UserError: a prompt or response is empty.
        """
        for number, (prompt, response) in enumerate(pairs):
            if not backbone.as_text(prompt).strip() or not response.strip():
                raise UserError(f"item {number}: the {'response' if response.strip() == '' else 'prompt'} is empty")
        tokens = [self.structure.backbone.tokenize(prompt, response) for prompt, response in pairs]
        order = sorted(range(len(pairs)), key=lambda place: len(tokens[place].ids))  # like lengths pad least
        found: dict[int, Score] = {}
        on_cpu = next(self.structure.parameters()).device.type == "cpu"
        size = batch or (CPU_BATCH if on_cpu else BATCH)
        for start in range(0, len(order), size):
            places = order[start : start + size]
            chosen = [pairs[place] for place in places]
            said = self.structure.score(chosen, [tokens[place] for place in places], explain=explain)
            for row, place in enumerate(places):
                found[place] = self._score(said, row, tokens[place])
        return [found[place] for place in range(len(pairs))]

    def probability(self, score: float) -> float:
        """Of being preferred to an average response, in (0, 1)."""
        return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, score))))

    def _score(self, said: Any, row: int, pair: backbone.Pair) -> Score:
        values, shares = said.values[row].tolist(), said.attribution[row].tolist()
        failed = said.failures[row]
        absent = [name for name, value in zip(self.dimensions, values, strict=True) if math.isnan(value)]
        flags = [name for name, on in (("prompt", pair.cut_prompt), ("response", pair.cut_response)) if on]
        flags = [f"{name}_truncated" for name in flags]
        flags += [f"{'failed' if name in failed else 'absent'}:{name}" for name in absent]
        dimensions = {n: v for n, v in zip(self.dimensions, values, strict=True) if not math.isnan(v)}
        attribution = dict(zip(self.dimensions, shares, strict=True))
        additive = self.structure.fusion_config.kind == "additive"
        score = self.bias + sum(shares) if additive else float(said.score[row])
        return Score(score, dimensions, attribution, pair.cut_prompt or pair.cut_response, tuple(flags))


def is_reward_model(path: str | Path) -> bool:
    """Whether a directory holds a structural reward model."""
    return (Path(path) / SETTINGS).is_file()


def read_settings(place: Path) -> dict[str, Any]:
    """Settings of a saved model.

    Raises:
        UserError: there are none, or they are of another format.
    """
    if not (place / SETTINGS).is_file() or not (place / WEIGHTS).is_file():
        raise UserError(f"{place}: not a reward model's directory ({SETTINGS} or {WEIGHTS} is missing)")
    settings = models.read_json(place / SETTINGS)
    if settings.get("format") != FORMAT:
        raise UserError(f"{place / SETTINGS}: format {settings.get('format')!r}; this raylm reads format {FORMAT}")
    return settings
