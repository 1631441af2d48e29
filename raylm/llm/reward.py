"""Reward models for the search: local ones, structural or a sequence classifier, or one served over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylm.errors import EngineDied, UserError
from raylm.llm import quick

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TIMEOUT = 60.0
_TRIES = 3


def is_address(model: str) -> bool:
    """Whether a reward model is named by its address."""
    return model.startswith(("http://", "https://"))


async def build(model: str, *, cpus: float = 1.0, gpus: float = 0.0) -> LocalReward | StructuralReward | ServedReward:
    """The reward model at a directory or an address.

    Raises:
        UserError: it cannot be loaded, or is neither a structural reward model nor a classifier with one output.
    """
    if is_address(model):
        return ServedReward(model)
    if is_structural(model):
        return await asyncio.to_thread(StructuralReward, model, cpus, gpus)
    return await asyncio.to_thread(LocalReward, model, cpus, gpus)


class LocalReward:
    """A sequence classifier with one output; the score is the sigmoid of its logit for the question and response."""

    def __init__(self, path: str, cpus: float = 1.0, gpus: float = 0.0) -> None:
        """Load it; see `build`."""
        import torch

        quick.without_sklearn()
        from transformers import AutoConfig, AutoModelForSequenceClassification

        from raylm.llm import models

        if not (Path(path) / "config.json").is_file():
            raise UserError(f"search.value.model={path}: no model directory (config.json is missing)")
        settings = AutoConfig.from_pretrained(path, trust_remote_code=False)
        architectures = settings.architectures or []
        if settings.num_labels != 1 or not any("SequenceClassification" in name for name in architectures):
            named = ", ".join(architectures) or "a model"
            raise UserError(
                f"search.value.model={path}: {named} with {settings.num_labels} outputs is no reward model; it takes a "
                "sequence classifier with one output"
            )
        torch.set_num_threads(max(1, int(cpus)))
        self.tokenizer: PreTrainedTokenizerBase = models.load_tokenizer(Path(path), False)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            path, use_safetensors=True, trust_remote_code=False
        )
        self.device = torch.device("cuda" if gpus > 0 and torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.positions = getattr(settings, "max_position_embeddings", None)
        self._lock = asyncio.Lock()

    async def score(self, question: str, response: str) -> float:
        """The probability that the classifier gives a response, in [0, 1].

        Raises:
            ValueError: question and response are longer than the model's positions; nothing is cut off.
        """
        ids = self._ids(question, response)
        if self.positions and len(ids) > self.positions:
            raise ValueError(f"{len(ids)} tokens are more than the {self.positions} positions of the reward model")
        # One by one, so that a score does not depend on what else is scored with it.
        async with self._lock:
            return await asyncio.to_thread(self._forward, ids)

    def _ids(self, question: str, response: str) -> list[int]:
        from raylm.llm.chat import training_ids

        if self.tokenizer.chat_template is None:
            return list(self.tokenizer(question, response)["input_ids"])
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
        return training_ids(self.tokenizer, messages)[0]

    def _forward(self, ids: Sequence[int]) -> float:
        import torch

        with torch.inference_mode():
            logit = self.model(input_ids=torch.tensor([list(ids)], device=self.device)).logits[0, 0]
        return float(torch.sigmoid(logit.float()))


def is_structural(model: str) -> bool:
    """Whether a directory holds a structural reward model; no heavy import."""
    return (Path(model) / "srm.json").is_file()


class StructuralReward:
    """A structural reward model; the score is the probability that the response is better than an average one."""

    def __init__(self, path: str, cpus: float = 1.0, gpus: float = 0.0) -> None:
        """Load it; see `build`."""
        import torch

        from raylm.srm.model import RewardModel

        torch.set_num_threads(max(1, int(cpus)))
        device = "cuda" if gpus > 0 and torch.cuda.is_available() else "cpu"
        self.model = RewardModel.load(path, device=device)
        self._lock = asyncio.Lock()

    async def score(self, question: str, response: str) -> float:
        """In [0, 1]; a blank response is worth 0.

        Raises:
            ValueError: question and response are longer than the model's context; nothing is cut off.
        """
        if not response.strip():
            return 0.0
        # One by one, so that a score does not depend on what else is scored with it.
        async with self._lock:
            said = (await asyncio.to_thread(self.model.score, question, [response], explain=False))[0]
        if said.truncated:
            raise ValueError(f"a response does not fit into the context of the reward model {self.model.name}")
        return self.model.probability(said.score)


class ServedReward:
    """A reward model behind HTTP.

    An address that ends in /v1/score is one of `raylm serve`: it gets {"prompt", "responses"}, and the score is the
    probability that it answers. Any other gets {"items": [{"question", "response"}]} and answers {"scores": [number in
    [0, 1]]}. RAYLM_REWARD_TOKEN is sent as the bearer token.
    """

    def __init__(self, address: str) -> None:
        self.address, self.own = address, address.rstrip("/").endswith("/v1/score")

    async def score(self, question: str, response: str) -> float:
        """What the service says of one response; a blank one is worth 0 to `raylm serve`'s models.

        Raises:
            EngineDied: it does not answer, or not with one score in [0, 1].
            ValueError: it had to cut the response or the question.
        """
        if self.own and not response.strip():
            return 0.0
        return await asyncio.to_thread(self._ask, question, response)

    def _ask(self, question: str, response: str) -> float:
        items = {"items": [{"question": question, "response": response}]}
        body = json.dumps({"prompt": question, "responses": [response]} if self.own else items).encode()
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get("RAYLM_REWARD_TOKEN"):
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(self.address, body, headers)
        error: Exception | None = None
        for _ in range(_TRIES):
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                    return self._read(json.loads(answer.read()))
            except urllib.error.HTTPError as failure:
                error = _told(failure)
                if failure.code < 500 and failure.code not in (408, 429):
                    break  # asked again, it would answer the same
                time.sleep(min(10.0, float(failure.headers.get("Retry-After") or 0)))
            except (urllib.error.URLError, OSError, json.JSONDecodeError) as failure:
                error = failure
        raise EngineDied(f"the reward model at {self.address} does not answer: {error}")

    def _read(self, answer: Any) -> float:
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if self.own and isinstance(answer, dict):
            rows = [row for row in answer.get("data") or () if isinstance(row, dict)]
            if any(row.get("truncated") for row in rows):
                raise ValueError(f"a response does not fit into the context of the reward model at {self.address}")
            scores = [row.get("probability") for row in rows]
        if (
            not isinstance(scores, list)
            or len(scores) != 1
            or not isinstance(scores[0], (int, float))
            or not 0 <= scores[0] <= 1
        ):
            raise EngineDied(
                f"the reward model at {self.address} answers {str(answer)[:80]!r}, not one score in [0, 1]"
            )
        return float(scores[0])


def _told(failure: urllib.error.HTTPError) -> Exception:
    """The message of an error in OpenAI's form, or the error as it is."""
    try:
        return RuntimeError(f"{failure.code}: {json.loads(failure.read())['error']['message']}")
    except (ValueError, KeyError, TypeError):
        return failure
