"""Configs of problem sources, prompts and answer checks."""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from raylm.config import Config, runtime

CHECKER_NAMES = ("auto", "number", "exact", "math", "task")
"""The checkers that come with raylm; any other is named as package.module:function."""
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class SourceConfig(Config):
    """Where some problems come from: a reasoning-gym task, or a dataset on disk or the hub."""

    name: str
    """Label of the source in reports; also the reasoning-gym task unless `task` is given."""
    kind: Literal["reasoning_gym", "dataset"] = "reasoning_gym"
    """reasoning_gym makes problems procedurally; dataset reads JSONL, JSONL.GZ, Parquet or a Hugging Face dataset."""
    task: str = ""
    """reasoning-gym dataset name; empty takes `name`."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the reasoning-gym dataset (difficulty)."""
    path: str = ""
    """Dataset file, glob, directory or hub id. Environment variables like ${RAYLM_DATA} are expanded."""
    subset: str = ""
    """Configuration of a Hugging Face dataset, such as `main` of openai/gsm8k."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    question_field: str = "question"
    """Column with the question."""
    answer_field: str = "answer"
    """Column with the gold answer."""
    id_field: str = "id"
    """Column with a unique id; rows without it are numbered."""
    checker: str = "auto"
    """How an answer is verified: math (math-verify), number, exact text, task (reasoning-gym's scorer), or your own
    package.module:function, called as function(response, problem) in a process that can be killed; it returns True or
    False, and finds the other columns of a dataset's row in problem.metadata_json under "fields".
    auto is task for reasoning-gym and math otherwise."""
    limit: int = Field(0, ge=0)
    """Problems to take, fewer are an error; 0 takes all of a dataset (reasoning-gym needs a number)."""
    offset: int = Field(0, ge=0)
    """Problems to skip first."""
    seed: int = 0
    """Seed of procedural problems, and of the shuffle when `shuffle` is on."""
    shuffle: bool = False
    """Shuffle a dataset before offset and limit."""
    part: Literal["all", "train", "test"] = "all"
    """Take only the three quarters (train) or the other quarter (test) of all questions that a hash of the question
    puts there: the two never share a question, whatever the seeds. Applied before offset and limit."""

    @field_validator("checker")
    @classmethod
    def _known_checker(cls, name: str) -> str:
        if name in CHECKER_NAMES or _DOTTED.fullmatch(name):
            return name
        close = difflib.get_close_matches(name, CHECKER_NAMES, n=1)
        raise ValueError(
            f"no checker {name!r}"
            + (f"; did you mean {close[0]}?" if close else "")
            + f" (known: {', '.join(CHECKER_NAMES)}, or your own as package.module:function)"
        )

    @model_validator(mode="after")
    def _complete(self) -> SourceConfig:
        if self.kind == "dataset" and not self.path:
            raise ValueError(f"source {self.name}: kind dataset needs path")
        if self.kind == "reasoning_gym" and not self.limit:
            raise ValueError(f"source {self.name}: kind reasoning_gym needs limit, its tasks are endless")
        if self.kind == "dataset" and self.checker == "task":
            raise ValueError(f"source {self.name}: checker task scores reasoning-gym's problems only")
        return self


class Example(Config):
    """One worked example of a few-shot prompt."""

    question: str
    """The question, as a user's turn."""
    response: str
    """The worked answer, as the assistant's turn."""


class PromptConfig(Config):
    """How a question becomes a chat."""

    system: str = ""
    """System turn; empty leaves it to the chat template."""
    template: str = "{question}"
    """User turn; {question} is replaced literally, so braces in a question are harmless."""
    examples: tuple[Example, ...] = ()
    """Worked examples, as earlier turns of the chat."""

    @model_validator(mode="after")
    def _has_question(self) -> PromptConfig:
        if "{question}" not in self.template:
            raise ValueError("template must contain {question}")
        return self

    def messages(self, question: str) -> list[dict[str, str]]:
        """The chat that asks `question`, without an answer."""
        turns = [{"role": "system", "content": self.system}] if self.system else []
        for example in self.examples:
            turns.append({"role": "user", "content": self.template.replace("{question}", example.question)})
            turns.append({"role": "assistant", "content": example.response})
        turns.append({"role": "user", "content": self.template.replace("{question}", question)})
        return turns


class VerifierConfig(Config):
    """The pool of processes that check answers."""

    timeout: float = Field(5.0, gt=0)
    """Seconds after which a check is killed and its verdict is `unverifiable`."""
    memory: float = Field(4.0, gt=0)
    """GiB of address space that a process may take; a check that wants more is `unverifiable`."""
    workers: int = runtime(1, ge=1)
    """Processes a pool."""
