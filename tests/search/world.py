"""A small world to search in: a scripted policy, a checker of answers, and a recorder of requests."""

import asyncio
from dataclasses import dataclass

from raylm.config import build
from raylm.errors import EngineDied
from raylm.llm.config import EngineConfig
from raylm.llm.scripted import ScriptedEngine
from raylm.records import Problem
from raylm.search.config import ExploreConfig
from raylm.search.explorer import grow


def config(**search):
    return build(ExploreConfig, {"problems": [{"name": "chain_sum", "limit": 1}], "search": search})


def problem(number=0, question="What is 3 + 4 - 2 + 6?", answer="11"):
    return Problem(f"sum-{number}", "sums", question, answer, "exact")


@dataclass
class Check:
    answer: str
    verdict: str


class AnswerCheck:
    """Compares what follows the last `Answer:`; a response with a 7 in it cannot be checked when `odd` is on."""

    def __init__(self, odd=False):
        self.odd, self.seen = odd, []

    async def verify(self, problem, response):
        await asyncio.sleep(0)
        self.seen.append(response)
        return self.check(problem, response)

    def check(self, problem, response):
        answer = response.rpartition("Answer:")[2].strip() if "Answer:" in response else ""
        if self.odd and "7" in answer:
            return Check(answer, "unverifiable")
        return Check(answer, "correct" if answer == problem.answer else "wrong")


class Recorder:
    """An engine that notes its requests, waits at random, and may die at one of them."""

    def __init__(self, engine, delays=None, die_at=None):
        self.engine, self.delays, self.die_at = engine, delays, die_at
        self.model, self.tokenizer, self.name = engine.model, engine.tokenizer, "recorder"
        self.requests = []

    async def generate(self, prompt, sampling):
        self.requests.append((tuple(prompt), sampling))
        if self.delays is not None:
            await asyncio.sleep(self.delays.random() * 0.003)
        if self.die_at is not None and len(self.requests) > self.die_at:
            raise EngineDied("planned")
        return await self.engine.generate(prompt, sampling)


def scripted(tokenizer, accuracy=0.6):
    settings = {"kind": "scripted", "model": "micro", "script": {"accuracy": accuracy}}
    return ScriptedEngine(build(EngineConfig, settings), tokenizer)


def grow_one(tokenizer, settings, *, seed=0, check=None, engine=None, **options):
    engine = engine or Recorder(scripted(tokenizer))
    return asyncio.run(grow(problem(), engine, check or AnswerCheck(), settings, seed, **options)), engine
