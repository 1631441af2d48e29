"""Teacher forcing: how likely a model finds given responses, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.cache_utils import DynamicLayer

from raylm.llm import models
from raylm.llm.chat import IGNORE
from raylm.train.data import Sample, collate


@dataclass(frozen=True, slots=True)
class Score:
    """What a model makes of one response."""

    logprob: float
    """Of the whole response and the token that ends it, in nats."""
    tokens: int
    least: float
    """Log-probability of its least likely token."""
    greedy: bool
    """Whether each token is the likeliest after those before it, so that greedy decoding writes the response."""
    prompt: tuple[float, ...] = ()
    """Log-probabilities of the prompt's tokens from the second on, where asked for."""

    @property
    def nll(self) -> float:
        """Nats a token."""
        return -self.logprob / self.tokens


class Scorer:
    """A causal language model that scores responses in batches of like lengths."""

    def __init__(self, path: str | Path, *, gpus: float = 0.0, trust_remote_code: bool = False, tokens: int = 4096):
        """Load a model directory.

        Args:
            path: the directory.
            gpus: above 0 uses the first visible GPU, in bfloat16.
            trust_remote_code: run code that comes with the model.
            tokens: of one forward pass, padding included.

        Raises:
            UserError: as `load_model`.
        """
        on_gpu = gpus > 0 and torch.cuda.is_available()
        model = models.load_model(path, torch.bfloat16 if on_gpu else torch.float32, trust_remote_code)
        self.model = model.to("cuda" if on_gpu else "cpu").eval()
        self.tokens = tokens

    def score(self, samples: Sequence[Sample], prompts: bool = False) -> list[Score]:
        """The score of each sample's labelled tokens; `prompts` adds those of the tokens before them."""
        found: list[Score | None] = [None] * len(samples)
        for places in self._batches(samples):
            batch = [samples[place] for place in places]
            for place, score in zip(places, self._forward(batch, prompts), strict=True):
                found[place] = score
        return [score for score in found if score is not None]

    def score_options(self, groups: Sequence[Sequence[Sample]]) -> list[list[Score]]:
        """The scores of each group's samples, of which what all begin with goes through the model once."""
        found: list[list[Score]] = [[] for _ in groups]
        for begun, places in self._alike(groups):
            scores = iter(self._after(begun, [groups[place] for place in places]))
            for place in places:
                found[place] = [next(scores) for _ in groups[place]]
        return found

    @torch.inference_mode()
    def _forward(self, samples: list[Sample], prompts: bool) -> Iterator[Score]:
        tensors = {name: tensor.to(self.model.device) for name, tensor in collate(samples, 0).items()}
        hidden = self.model.base_model(
            input_ids=tensors["ids"], attention_mask=tensors["mask"], use_cache=False
        ).last_hidden_state
        yield from self._read(tensors, hidden, prompts)

    def _read(self, tensors: dict[str, torch.Tensor], hidden: torch.Tensor, prompts: bool) -> Iterator[Score]:
        """Scores of a batch from its hidden states, [samples, tokens, dimension]."""
        hidden = hidden[:, :-1]
        labelled = tensors["labels"][:, 1:] != IGNORE
        wanted = tensors["mask"][:, 1:].bool() if prompts else labelled
        targets = tensors["ids"][:, 1:][wanted]
        head = self.model.get_output_embeddings()
        logits = torch.cat([head(part).float() for part in hidden[wanted].split(1024)])
        chosen = logits.gather(1, targets[:, None])[:, 0]
        likely = (chosen - logits.logsumexp(-1)).double().cpu().numpy()
        hits = (logits.argmax(-1) == targets).cpu().numpy()
        rows = wanted.nonzero()[:, 0].cpu().numpy()
        response = labelled[wanted].cpu().numpy()
        for row in range(len(labelled)):
            own = rows == row
            values, marks = likely[own], response[own]
            yield Score(
                logprob=float(values[marks].sum()),
                tokens=int(marks.sum()),
                least=float(values[marks].min()),
                greedy=bool(hits[own][marks].all()),
                prompt=tuple(float(value) for value in values[~marks]),
            )

    @torch.inference_mode()
    def _after(self, begun: int, groups: list[Sequence[Sample]]) -> list[Score]:
        """Scores of the samples of groups that each begin with `begun` tokens of their own."""
        samples = [sample for group in groups for sample in group]
        owner = [number for number, group in enumerate(groups) for _ in group]
        tensors = {name: tensor.to(self.model.device) for name, tensor in collate(samples, 0).items()}
        firsts = [owner.index(number) for number in range(len(groups))]
        start = self.model.base_model(input_ids=tensors["ids"][firsts, :begun], use_cache=True)
        cache = start.past_key_values
        if not all(isinstance(layer, DynamicLayer) for layer in getattr(cache, "layers", [None])):
            return self.score(samples)  # a state that cannot be dealt out to several continuations
        cache.batch_select_indices(torch.tensor(owner, device=self.model.device))
        rest = self.model.base_model(
            input_ids=tensors["ids"][:, begun:], attention_mask=tensors["mask"], past_key_values=cache, use_cache=True
        )
        hidden = torch.cat([start.last_hidden_state[owner], rest.last_hidden_state], 1)
        return list(self._read(tensors, hidden, False))

    def _alike(self, groups: Sequence[Sequence[Sample]]) -> Iterator[tuple[int, list[int]]]:
        """Batches of groups that begin with equally many tokens, so that nothing stands before a beginning."""
        by_begun: dict[int, list[int]] = {}
        for place, group in enumerate(groups):
            if group:
                by_begun.setdefault(_begun(group), []).append(place)
        for begun, places in sorted(by_begun.items(), reverse=True):
            batch: list[int] = []
            rows = longest = 0
            for place in places:
                size = max(len(sample.ids) for sample in groups[place])
                if batch and (rows + len(groups[place])) * max(longest, size) > self.tokens:
                    yield begun, batch
                    batch, rows, longest = [], 0, 0
                batch.append(place)
                rows, longest = rows + len(groups[place]), max(longest, size)
            yield begun, batch

    def _batches(self, samples: Sequence[Sample]) -> Iterator[list[int]]:
        batch: list[int] = []
        for place in sorted(range(len(samples)), key=lambda place: (-len(samples[place].ids), place)):
            if batch and len(samples[batch[0]].ids) * (len(batch) + 1) > self.tokens:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch


def _begun(group: Sequence[Sample]) -> int:
    """Tokens that all samples of a group begin with, less than all of any."""
    most = min(len(sample.ids) for sample in group) - 1
    return next((n for n in range(most) if len({sample.ids[n] for sample in group}) > 1), most)


def min_k(prompt: Sequence[float], share: float) -> float:
    """Mean log-probability of a text's least expected tokens: Min-K%.

    source: Shi et al., "Detecting pretraining data from large language models" (2024), eq. 1 (R).

    Args:
        prompt: log-probabilities of its tokens.
        share: of the tokens that count, at least one.
    """
    if not prompt:
        return 0.0
    ordered = np.sort(np.asarray(prompt))
    return float(ordered[: max(1, int(share * len(ordered)))].mean())


def divergence_from(probability: float) -> float:
    """Jensen-Shannon divergence, in nats, of a distribution from the one that has all of its mass on one outcome.

    With p the probability of that outcome and M the mean of both, it depends on p alone:
    (ln(2 / (1 + p)) + p ln(2p / (1 + p)) + (1 - p) ln 2) / 2; 0 for p = 1 and ln 2 for p = 0.
    """
    p = min(1.0, max(0.0, probability))
    shared = p * np.log(2 * p / (1 + p)) if p > 0 else 0.0
    return max(0.0, float((np.log(2 / (1 + p)) + shared + (1 - p) * np.log(2)) / 2))  # rounding may pass 0
