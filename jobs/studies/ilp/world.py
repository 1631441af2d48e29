"""A small world of entities and facts, and samples with a planted reason to fail.

A sample asks for one relation of one entity (or of two). Strong facts are told often; weak ones among gossip that says
something else; of gossip alone nothing can be known. What is planted:

    clean         strong or weak facts, as the base model has them
    prerequisite  facts about entities that the base model has never met
    conflict      strong facts, with another answer than the base model was told
    inconsistency pairs of samples with the same question and two answers, of which weak facts say which is right
    forgotten     gossip, trained on first, in a stream that goes on with everything else
    underfit      a relation of pairs of known entities, each pair once
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GROUPS = ("clean", "prerequisite", "conflict", "inconsistency", "forgotten", "underfit")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
ASKED = ("what is the {r} of {e}", "say the {r} of {e}", "please tell me the {r} of {e}", "give the {r} of {e}")
TOLD = ("the {r} of {e} is {v}", "{e} has the {r} {v}", "as for the {r} of {e} it is {v}")
VALUES = 32
Key = tuple[str, str]
"""(relation, entity)"""


@dataclass(frozen=True)
class Sizes:
    """How many of each."""

    known: int = 60
    clean: int = 40
    """Of strong facts, and again of weak ones."""
    group: int = 24
    """Samples of a planted group."""
    told: int = 12
    """Times that a strong fact is told, or asked and answered, in a pass of pretraining; a weak one likewise."""
    truth: float = 0.6
    """Share of the tellings of a weak fact that are true."""


@dataclass
class World:
    """Everything that a seed decides."""

    seed: int
    sizes: Sizes
    draw: random.Random
    known: list[str]
    values: dict[str, list[str]]
    """Relation to its possible values."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """id, group, question, answer, truth (which differs where the answer is planted wrong), relation, entity."""
    unknown: list[tuple[str, str, str]] = field(default_factory=list)
    """Facts about entities that the base model has never met: relation, entity, value."""
    lines: list[tuple[str, str]] = field(default_factory=list)
    """What pretraining reads: ("", text) or (question, answer)."""
    general: list[dict[str, Any]] = field(default_factory=list)
    """Strong facts that no sample asks for, as samples."""

    def tell(self, key: Key, values: list[str]) -> None:
        """Put a fact into pretraining, once for each value, every second time as question and answer."""
        for number, value in enumerate(values):
            form = self.draw.choice(ASKED if number % 2 else TOLD)
            text = form.format(r=key[0], e=key[1], v=value)
            self.lines.append((text, value) if number % 2 else ("", text))

    def gossip(self, key: Key, truth: str, share: float) -> None:
        """Tell a fact so that a share of what is said is true and the rest is anything."""
        true = round(share * self.sizes.told)
        said = [truth] * true + [self.draw.choice(self.values[key[0]]) for _ in range(self.sizes.told - true)]
        self.draw.shuffle(said)
        self.tell(key, said)

    def ask(self, group: str, key: Key, answer: str, truth: str = "", form: int = -1) -> None:
        """Add a sample."""
        number = sum(row["group"] == group for row in self.samples)
        asked = ASKED[form if form >= 0 else self.draw.randrange(len(ASKED))]
        self.samples.append({
            "id": f"{group}-{number}", "group": group, "question": asked.format(r=key[0], e=key[1]),
            "answer": answer, "truth": truth or answer, "relation": key[0], "entity": key[1],
        })  # fmt: skip

    def pick(self, relation: str, but: str = "") -> str:
        """A value of a relation."""
        return self.draw.choice([value for value in self.values[relation] if value != but])

    def rows(self, *groups: str) -> list[dict[str, Any]]:
        """Chat rows of some groups."""
        return [chat(row) for row in self.samples if row["group"] in groups]

    def words(self) -> list[str]:
        """Every word of the world."""
        texts = [text for line in self.lines for text in line]
        texts += [text for row in self.samples for text in (row["question"], row["answer"])]
        return sorted({word for text in texts for word in text.split()})


def chat(row: dict[str, Any]) -> dict[str, Any]:
    """A sample as a row of chains."""
    turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
    return {"id": row["id"], "messages": turns}


def other_forms(row: dict[str, Any]) -> list[str]:
    """A sample's question in the other phrasings."""
    forms = [form.format(r=row["relation"], e=row["entity"]) for form in ASKED]
    return [question for question in forms if question != row["question"]]


def make(seed: int, sizes: Sizes = Sizes()) -> World:
    """The world of a seed."""
    draw = random.Random(seed)
    relations = ("colour", "size", "food", "home", "bond", "pet")
    names = _names(draw, sizes.known + sizes.group + len(relations) * VALUES)
    first = sizes.known + sizes.group
    values = {name: names[first + number * VALUES :][:VALUES] for number, name in enumerate(relations)}
    world = World(seed, sizes, draw, names[: sizes.known], values)
    _add_strong(world)
    _add_weak(world)
    for number, entity in enumerate(names[sizes.known : first]):
        relation = ("colour", "size", "food")[number % 3]
        value = world.pick(relation)
        world.unknown.append((relation, entity, value))
        world.ask("prerequisite", (relation, entity), value)
    for _ in range(sizes.group * 6):  # the relation is known, but no one fact of it can be
        world.tell(("bond", _pair(world)), [world.pick("bond"), world.pick("bond")])
    for _ in range(sizes.group):
        world.ask("underfit", ("bond", _pair(world)), world.pick("bond"))
    draw.shuffle(world.lines)
    return world


def _add_strong(world: World) -> None:
    """Strong facts, and the samples about them: conflicts, clean ones, and the general set."""
    sizes = world.sizes
    facts = {
        (relation, entity): world.pick(relation) for relation in ("colour", "size", "food") for entity in world.known
    }
    for key, value in facts.items():
        world.tell(key, [value] * sizes.told)
    keys = sorted(facts)
    world.draw.shuffle(keys)
    for key in keys[: sizes.group]:
        world.ask("conflict", key, world.pick(key[0], but=facts[key]))
    for key in keys[sizes.group : sizes.group + sizes.clean]:
        world.ask("clean", key, facts[key])
    for number, (relation, entity) in enumerate(keys[sizes.group + sizes.clean :][: sizes.clean]):
        question = ASKED[number % len(ASKED)].format(r=relation, e=entity)
        world.general.append({"id": f"general-{number}", "question": question, "answer": facts[relation, entity]})


def _add_weak(world: World) -> None:
    """Weak facts and gossip, and the samples about them: clean ones, contradictions, and what is forgotten."""
    sizes = world.sizes
    for entity in world.draw.sample(world.known, sizes.clean):
        truth = world.pick("home")
        world.gossip(("home", entity), truth, sizes.truth)
        world.ask("clean", ("home", entity), truth)
    pairs = sizes.group // 2
    for number, entity in enumerate(world.draw.sample(world.known, pairs + sizes.group)):
        key, truth = ("pet", entity), world.pick("pet")
        if number < pairs:
            world.gossip(key, truth, sizes.truth)
            world.ask("inconsistency", key, truth, form=0)
            world.ask("inconsistency", key, world.pick("pet", but=truth), truth, form=1)
        else:
            world.gossip(key, truth, 0.0)
            world.ask("forgotten", key, truth)


def _pair(world: World) -> str:
    return " and ".join(world.draw.sample(world.known, 2))


def _names(draw: random.Random, count: int) -> list[str]:
    """Distinct words of made-up syllables, none of which ends in s."""
    found: dict[str, None] = {}
    while len(found) < count:
        word = "".join(draw.choice("bdfgklmnprtvz") + draw.choice("aeiou") for _ in range(3))
        found[word + draw.choice("nrlkt")] = None
    return list(found)


def write_tokenizer(folder: Path, words: list[str]) -> None:
    """A tokenizer with a token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=None, eos_token="<|end|>", pad_token="<|pad|>", model_max_length=128
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
