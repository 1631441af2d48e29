"""What a training reads again and again: features or tokens of all texts, what tools say, ratings to learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from raylm.errors import UserError
from raylm.srm import branches, cache
from raylm.srm.branches import Inputs
from raylm.srm.config import RewardConfig
from raylm.srm.data import Data, Part, Text
from raylm.srm.structure import Structure

Known = Callable[[Sequence[Text]], cache.Features]
"""Features of texts by the untouched backbone, where the caller has them."""
Tell = Callable[[str, int, int], None]
"""Gets what is counted, how much of it is done, and of how much."""
SAMPLE = 512
"""Texts that a tuned backbone's features are standardised by."""


class Material:
    """Texts by their places in the data's table."""

    def __init__(
        self, config: RewardConfig, structure: Structure, data: Data, *, ranks: tuple[int, int] = (0, 1),
        folder: Path | None = None, known: Known | None = None, tell: Tell | None = None,
    ) -> None:  # fmt: skip
        """Read all texts once.

        Args:
            ranks: this rank, and how many there are.
            folder: where features are kept until the run has ended; None keeps none.
            known: see `Known`.
            tell: see `Tell`.

        Raises:
            UserError: more responses than `max_cut_share` are cut, or a tool says nothing or the same of all texts.
        """
        self.config, self.structure, self.data, self.ranks, self.folder = config, structure, data, ranks, folder
        self.device, self._tell = structure.backbone.device, tell
        self.tokens = [structure.backbone.tokenize(*text) for text in data.texts] if config.tune or not known else []
        self.cut = self._cuts()
        if config.tune:
            contexts = structure.backbone.contexts(self.tokens).detach().cpu()
            self.features = cache.Features(torch.zeros(0, structure.backbone.width), contexts, *self.cut)
        elif known is not None:
            self.features = known(data.texts)
        else:
            self.features = self._read()
        self.trained = np.unique([*data.train.pairs.flatten(), *data.train.rated]).astype(np.int64)
        if not config.retrain:
            self._standardise()
        self.side_texts = self._side_texts()
        self.said = self._base_values()
        """[texts, branches], what tools and side texts say; NaN elsewhere."""
        self._second: dict[int, torch.Tensor] = {}

    def standardised(self, places: np.ndarray) -> torch.Tensor:
        """Features of texts, [places, width]; of a tuned backbone by a pass with gradients."""
        structure = self.structure
        if self.config.tune:
            rows = [self.tokens[place] for place in places]
            raw = structure.backbone.features(structure.backbone.batch(rows))
        else:
            raw = self.features.raw[torch.from_numpy(places)].to(self.device)
        return (raw - structure.center) / structure.deviation

    def inputs(self, places: np.ndarray, features: torch.Tensor | None = None) -> Inputs:
        """What a fusion sees of texts; features only where they are given."""
        texts = [self.data.texts[place] for place in places]
        contexts = self.features.contexts[torch.from_numpy(places)].to(self.device)
        contexts = (contexts - self.structure.context_center) / self.structure.context_deviation
        empty = torch.zeros(len(places), 0, device=self.device) if features is None else features
        written = {name: [said[place] for place in places] for name, said in self.side_texts.items()}
        return Inputs([prompt for prompt, _ in texts], [text for _, text in texts], empty, contexts, written)

    @torch.no_grad()
    def values(self, places: np.ndarray, batch: int = 256) -> torch.Tensor:
        """What all branches say of texts, [places, branches], on the CPU; NaN where they are absent."""
        structure, training = self.structure, self.structure.training
        structure.eval()
        found = self.said[torch.from_numpy(places)].clone()
        for start in range(0, len(places), batch):
            features = self.standardised(places[start : start + batch])
            for column, spec in enumerate(structure.specs):
                if spec.trained:
                    branch = structure.trained[spec.name]
                    said = branch(features) * branch.std + branch.mean
                    found[start : start + batch, column] = said.float().cpu()
        structure.train(training)
        return found

    def wanted(self, part: Part, rows: np.ndarray, name: str) -> torch.Tensor:
        """Ratings of a part's rows that a branch should predict, [rows], in its standard deviations."""
        branch = self.structure.trained[name]
        ratings = torch.from_numpy(part.ratings[rows, self.data.columns.index(name)]).to(self.device)
        return (ratings - branch.mean) / branch.std

    def scale_ratings(self, names: Sequence[str]) -> None:
        """Give branches the mean and deviation of the training ratings that they learn."""
        for name in names:
            if name in self.data.columns:
                values = self.data.train.ratings[:, self.data.columns.index(name)]
                branch = self.structure.trained[name]
                branch.mean.fill_(float(np.nanmean(values)))
                branch.std.fill_(float(np.nanstd(values)))

    def forget(self) -> None:
        """Drop a text fusion's features, so that they are read anew from other values."""
        self._second.clear()

    def second(self, draw: int, values: torch.Tensor) -> torch.Tensor:
        """A text fusion's features of all texts, [texts, width]; -1 leaves no branch out, others some by chance."""
        if draw not in self._second:
            kept = values
            if draw >= 0:
                generator = torch.Generator().manual_seed(self.config.seed * 1000 + draw)
                drop = torch.rand(values.shape, generator=generator) < self.config.fusion.dropout
                kept = values.masked_fill(drop, torch.nan)
            fusion, places = self.structure.fusion, np.arange(len(self.data.texts))
            notes = fusion.notes(self.inputs(places), kept)  # type: ignore[operator]
            self._second[draw] = self._read(notes).raw
        return self._second[draw]

    def _read(self, notes: Sequence[str] = ()) -> cache.Features:
        """Features of all texts, with notes behind their prompts where they are given."""
        body, tell = self.structure.backbone, self._count("texts read again" if notes else "texts read")
        return cache.compute(body, self.data.texts, notes, folder=self.folder, ranks=self.ranks, tell=tell)

    def _count(self, unit: str) -> cache.Count | None:
        return None if self._tell is None else partial(self._tell, unit)

    def _standardise(self) -> None:
        structure, places = self.structure, self.trained
        if self.config.tune:
            places = places[np.linspace(0, len(places) - 1, min(SAMPLE, len(places))).astype(int)]
            raw = cache.compute(structure.backbone, [self.data.texts[place] for place in places]).raw
        else:
            raw = self.features.raw[torch.from_numpy(places)]
        contexts = self.features.contexts[torch.from_numpy(self.trained)]
        for name, table in (("", raw), ("context_", contexts)):
            getattr(structure, f"{name}center").copy_(table.mean(0))
            getattr(structure, f"{name}deviation").copy_(table.std(0).nan_to_num(1.0).clamp_min(1e-4))

    def _cuts(self) -> tuple[int, int]:
        prompts, responses = sum(t.cut_prompt for t in self.tokens), sum(t.cut_response for t in self.tokens)
        if responses > self.config.max_cut_share * len(self.data.texts):
            raise UserError(
                f"{responses} of {len(self.data.texts)} responses do not fit into max_length={self.config.max_length}, "
                f"and max_cut_share={self.config.max_cut_share} of them may be cut; raise one of the two"
            )
        return prompts, responses

    def _side_texts(self) -> dict[str, list[str]]:
        if self.structure.writer is None:
            return {}
        prompts, responses = zip(*self.data.texts, strict=True)
        tell = self._count("side texts")
        return self.structure.writer.write(self.structure.specs, prompts, responses, tell)

    def _base_values(self) -> torch.Tensor:
        places = np.arange(len(self.data.texts))
        found = torch.full((len(places), len(self.structure.specs)), torch.nan)
        others = [
            branch
            for spec, branch in zip(self.structure.specs, self.structure.branches, strict=True)
            if not spec.trained
        ]
        columns = [column for column, spec in enumerate(self.structure.specs) if not spec.trained]
        if not others or self.config.retrain:
            return found
        said, failures = branches.evaluate(others, self.inputs(places, torch.zeros(len(places), 0)))
        found[:, columns] = said.cpu()
        broken = [(place, name, why) for place, row in enumerate(failures) for name, why in row.items()]
        if broken:
            place, name, why = broken[0]
            raise UserError(
                f"branch {name} fails on {len(broken)} texts, first on {self.data.texts[place][1][:60]!r}: {why}"
            )
        for column, branch in zip(columns, others, strict=True):
            known = found[torch.from_numpy(self.trained), column]
            known = known[torch.isfinite(known)]
            if not len(known) or float(known.max() - known.min()) == 0.0:
                what = f"says {float(known[0]):g} of all" if len(known) else "has nothing to say of any of the"
                raise UserError(f"branch {branch.name} {what} training texts; leave it out")
        return found
