"""What asks the models: workers that run as Ray Data actors, or in this process without Ray."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from raylm.errors import EngineDied
from raylm.ilp import belief
from raylm.ilp.belief import Stakes, settled
from raylm.ilp.config import DiagnoseConfig
from raylm.ilp.items import Check, Item, normal_form
from raylm.ilp.rouge import rouge_l
from raylm.ilp.scoring import Score, Scorer, min_k
from raylm.llm.chat import prompt_ids, training_ids
from raylm.llm.protocol import Sampling
from raylm.seeds import stable_seed
from raylm.storage import Store
from raylm.tasks.answers import extract_answer
from raylm.train.data import Sample
from raylm.units import Unit

if TYPE_CHECKING:
    from raylm.llm.protocol import Engine
    from raylm.tasks.verify import VerifierPool

SCORES = pa.schema(
    [(name, pa.string()) for name in ("id", "model")]
    + [(name, pa.float64()) for name in ("logprob", "nll", "least", "familiarity")]
    + [("tokens", pa.int64()), ("greedy", pa.bool_()), ("options", pa.list_(pa.float64()))]
)
HALF = math.log(0.5)
RESPONSES = pa.schema(
    [("id", pa.string()), ("place", pa.int64()), ("response", pa.string()), ("right", pa.bool_()),
     ("normal", pa.string()), ("finished", pa.bool_()), ("reason", pa.string())]
)  # fmt: skip


class ScoreWorker:
    """Scores samples' own answers (P3), and options beside them (P1), by one model."""

    def __init__(self, config: DiagnoseConfig, path: str, model: str, questions: bool) -> None:
        """Score by the model at `path`, which rows name `model`; `questions` asks how familiar those are, too."""
        self.config, self.path, self.model, self.questions = config, path, model, questions
        self.scorer: Scorer | None = None
        self.turn = asyncio.Lock()  # one batch at a time fills the machine, and no more memory than it needs

    async def start(self) -> None:
        """Load the model."""
        await asyncio.to_thread(self._load)

    async def run(self, unit: Unit, store: Store) -> tuple[pa.Table, dict[str, Any]]:
        """Rows of `SCORES`, with log-probabilities of the options that an item comes with and that are in doubt."""
        del store
        async with self.turn:
            return await asyncio.to_thread(self._score, unit)

    async def close(self) -> None:
        """Free the model."""
        self.scorer = None

    def _load(self) -> None:
        import torch

        from raylm.llm.models import load_tokenizer

        torch.set_num_threads(max(1, int(self.config.compute.cpus)))
        self.tokenizer = load_tokenizer(self.path, self.config.trust_remote_code)
        self.scorer = Scorer(
            self.path,
            gpus=self.config.compute.gpus,
            trust_remote_code=self.config.trust_remote_code,
            tokens=self.config.batch_tokens,
        )

    def _score(self, unit: Unit) -> tuple[pa.Table, dict[str, Any]]:
        assert self.scorer is not None
        items = [restored(each) for each in unit.payload["items"]]
        scores = self.scorer.score([self._sample(item, item.answer) for item in items], prompts=self.questions)
        options = unit.payload.get("extra") or [()] * len(items)
        groups = [
            [self._sample(item, text) for text in texts] if self._in_doubt(score) else []
            for item, score, texts in zip(items, scores, options, strict=True)
        ]
        others = self.scorer.score_options(groups)
        rows = [
            self._row(item, score) | {"options": [each.logprob for each in own]}
            for item, score, own in zip(items, scores, others, strict=True)
        ]
        return pa.Table.from_pylist(rows, SCORES), _counted([*scores, *(score for own in others for score in own)])

    def _in_doubt(self, score: Score) -> bool:
        return not (self.config.probe.shortcuts and certain(score.greedy, score.logprob))

    def _sample(self, item: Item, answer: str) -> Sample:
        ids, labels = training_ids(self.tokenizer, [*item.messages, {"role": "assistant", "content": answer}])
        return Sample(item.id, ids, labels)

    def _row(self, item: Item, score: Score) -> dict[str, Any]:
        return {
            "id": item.id,
            "model": self.model,
            "logprob": score.logprob,
            "nll": score.nll,
            "least": score.least,
            "familiarity": min_k(score.prompt, self.config.rules.min_k) if self.questions else None,
            "tokens": score.tokens,
            "greedy": score.greedy,
        }


class AnswerWorker:
    """Writes responses to questions and checks them (P2, and what the base model believes)."""

    def __init__(self, config: DiagnoseConfig, path: str, samples: int) -> None:
        """A greedy response by the model at `path`, or up to `samples` sampled ones."""
        self.config, self.samples = config, samples
        self.settings = config.engine.model_copy(update={"model": path, "trust_remote_code": config.trust_remote_code})
        self.engine: Engine | None = None
        self.verifier: VerifierPool | None = None

    async def start(self) -> None:
        """Load the engine."""
        from raylm.llm import engine
        from raylm.tasks.verify import VerifierPool

        compute = self.config.compute
        self.engine = await engine.build(self.settings, cpus=compute.cpus, gpus=compute.gpus)
        self.verifier = self.verifier or VerifierPool(self.config.verifier)

    async def run(self, unit: Unit, store: Store) -> tuple[pa.Table, dict[str, Any]]:
        """Rows of `RESPONSES`: place 0 is the greedy one. What hangs on an item's samples may come with it."""
        del store
        if self.engine is None:
            raise EngineDied("the engine is being started again")
        items = [restored(each) for each in unit.payload["items"]]
        stakes = unit.payload.get("extra") or [None] * len(items)
        asked = [self._answers(item, given) for item, given in zip(items, stakes, strict=True)]
        rows = [row for rows in await asyncio.gather(*asked) for row in rows]
        facts = {"tokens": sum(row.pop("tokens") for row in rows), "generated": len(rows)}
        return pa.Table.from_pylist(rows, RESPONSES), facts

    async def close(self) -> None:
        """Free the engine."""
        engine, self.engine = self.engine, None
        if engine is not None:
            await engine.close()

    async def _answers(self, item: Item, stakes: Sequence[bool] | None) -> list[dict[str, Any]]:
        if not self.samples:
            greedy = Sampling(temperature=0.0, max_tokens=self.config.probe.max_tokens)
            return await self._judged(item, 0, [self._request(item, "{question}", greedy)])
        rows: list[dict[str, Any]] = []
        for places in belief.rounds(self.samples):
            rows += await self._judged(item, 1 + places.start, self._requests(item, places))
            said, right = [row["normal"] for row in rows], [row["right"] for row in rows]
            if stakes is not None and settled(said, right, self.samples, Stakes(*stakes), self.config.rules):
                break
        return rows

    def _requests(self, item: Item, places: range) -> list[Any]:
        """Samples dealt over the ways to put the question."""
        templates = self.config.ask_base.templates
        found = []
        for number, template in enumerate(templates):
            count = sum(place % len(templates) == number for place in places)
            if not count:
                continue
            sampling = Sampling(
                n=count,
                temperature=self.config.ask_base.temperature,
                max_tokens=self.config.probe.max_tokens,
                seed=stable_seed(self.config.seed, "base", item.id, number, places.start),
            )
            found.append(self._request(item, template, sampling))
        return found

    async def _judged(self, item: Item, first: int, asked: list[Any]) -> list[dict[str, Any]]:
        """Rows of responses, whose places begin with `first`."""
        written = [each for generation in await asyncio.gather(*asked) for each in generation.completions]
        judged = await asyncio.gather(*(self._judge(item, each.text) for each in written))
        return [
            {
                "id": item.id,
                "place": first + number,
                "response": each.text,
                "right": right,
                "normal": normal_form(each.text, item.check) or each.text.strip(),
                "finished": each.finish_reason == "stop",
                "reason": reason,
                "tokens": len(each.token_ids),
            }
            for number, (each, (right, reason)) in enumerate(zip(written, judged, strict=True))
        ]

    def _request(self, item: Item, template: str, sampling: Sampling) -> Any:
        engine = self.engine
        assert engine is not None
        last = item.messages[-1]
        turns = [*item.messages[:-1], {**last, "content": template.replace("{question}", last["content"])}]
        return engine.generate(prompt_ids(engine.tokenizer, turns), sampling)

    async def _judge(self, item: Item, response: str) -> tuple[bool | None, str]:
        """Whether a response is right; None, and why, where that cannot be told."""
        if item.check == "rouge":
            return rouge_l(response, item.answer) >= self.config.probe.rouge, ""
        if normal_form(response, item.check) == item.normal:
            return True, ""
        if item.check == "exact" or not extract_answer(response):
            return False, ""
        assert self.verifier is not None
        verdict = await self.verifier.verify(item.problem(), response)
        return (None if verdict.verdict == "unverifiable" else verdict.verdict == "correct"), verdict.reason


def certain(greedy: bool, logprob: float) -> bool:
    """Whether an answer is what greedy decoding writes, and more likely than all others together."""
    return greedy and logprob > HALF


def packed(item: Item) -> dict[str, Any]:
    """An item as JSON data."""
    return {
        "id": item.id,
        "messages": item.messages,
        "answer": item.answer,
        "check": item.check,
        "normal": item.normal,
        "task": item.task,
        "prerequisites": [list(pair) for pair in item.prerequisites],
    }


def restored(data: dict[str, Any]) -> Item:
    """The item of `packed`."""
    return Item(
        id=data["id"],
        messages=data["messages"],
        answer=data["answer"],
        check=cast("Check", data["check"]),
        normal=data["normal"],
        task=data["task"],
        prerequisites=tuple((question, answer) for question, answer in data["prerequisites"]),
    )


def lengths(texts: Sequence[str], tokenizer_path: str | Path, trust_remote_code: bool = False) -> dict[str, int]:
    """Tokens of texts."""
    from raylm.llm.models import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_path, trust_remote_code)
    distinct = sorted(set(texts))
    encoded = tokenizer(distinct, add_special_tokens=False)["input_ids"] if distinct else []
    return {text: len(ids) for text, ids in zip(distinct, encoded, strict=True)}


def _counted(scores: Sequence[Score]) -> dict[str, Any]:
    return {"tokens": sum(score.tokens + len(score.prompt) for score in scores)}
