"""Teacher forcing: how likely a model finds given responses, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

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

    @torch.inference_mode()
    def _forward(self, samples: list[Sample], prompts: bool) -> Iterator[Score]:
        tensors = {name: tensor.to(self.model.device) for name, tensor in collate(samples, 0).items()}
        hidden = self.model.base_model(
            input_ids=tensors["ids"], attention_mask=tensors["mask"], use_cache=False
        ).last_hidden_state[:, :-1]
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
        for row in range(len(samples)):
            own = rows == row
            values, marks = likely[own], response[own]
            yield Score(
                logprob=float(values[marks].sum()),
                tokens=int(marks.sum()),
                least=float(values[marks].min()),
                greedy=bool(hits[own][marks].all()),
                prompt=tuple(float(value) for value in values[~marks]),
            )

    def _batches(self, samples: Sequence[Sample]) -> Iterator[list[int]]:
        batch: list[int] = []
        for place in sorted(range(len(samples)), key=lambda place: (-len(samples[place].ids), place)):
            if batch and len(samples[batch[0]].ids) * (len(batch) + 1) > self.tokens:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch


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
