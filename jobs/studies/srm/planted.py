"""A planted set: every prompt says which of five dimensions decides, and nothing else does."""

from __future__ import annotations

import random
from typing import Any

ASPECTS = {
    "relevance": (
        "What matters is that the reply keeps to the topic.",
        "Judge the reply by whether it is about the topic.",
        "The subject asked about must be answered, nothing else.",
    ),
    "coverage": (
        "What matters is that the people and places are named.",
        "Judge the reply by whether it repeats all names.",
        "Every person and place must be mentioned by name.",
    ),
    "arithmetic": (
        "What matters is that the sums are calculated correctly.",
        "Judge the reply by whether its calculation is correct.",
        "The arithmetic in the reply must be free of mistakes.",
    ),
    "style": (
        "What matters is a polite and formal tone.",
        "Judge the reply by whether its manner is courteous.",
        "The tone must be formal and friendly, no slang.",
    ),
    "repetition": (
        "What matters is that nothing is said twice.",
        "Judge the reply by whether it is free of repeated phrases.",
        "Do not repeat anything, each phrase once.",
    ),
}
"""Dimension to the ways in which a prompt asks for it."""
NAMES = ("Marta", "Tobias", "Ingrid", "Pavel", "Chiara", "Yusuf", "Noemi", "Bartosz")
CITIES = ("Trieste", "Aarhus", "Porto", "Gdansk", "Leuven", "Malaga", "Turku", "Graz")
TOPICS = {
    "a bicycle repair": "the chain and the brakes of the bicycle were repaired and the wheels run true again",
    "a lost parcel": "the parcel was found in the depot and the courier will deliver it soon",
    "a hotel booking": "the hotel room is reserved and breakfast is part of the booking",
    "a garden order": "the rose bushes and the soil for the garden will be brought by our van",
    "a dental visit": "the dentist will see the tooth and the visit takes half an hour",
    "a music lesson": "the piano lesson starts with scales and the teacher brings the notes",
}
STYLES = (
    ("Thank you kindly for your message; it is a pleasure to assist you.", "We remain sincerely at your service."),
    ("yo whats up, gotcha lol.", "catch ya later dude."),
)


def make(prompts: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Preference pairs, each with the dimension that `decides`, and ratings of all five dimensions.

    The two responses differ in the deciding dimension, and in every other one by chance. Ratings are the levels, 1 and
    5, with noise of one point.
    """
    draws = random.Random(seed)
    pairs, ratings = [], []
    for number in range(prompts):
        aspect = list(ASPECTS)[number % len(ASPECTS)]
        name, city, topic = draws.choice(NAMES), draws.choice(CITIES), draws.choice(list(TOPICS))
        asked = f"The customer {name} from {city} writes about {topic}; case {_word(draws)}."
        prompt = f"{draws.choice(ASPECTS[aspect])} {asked}"
        levels = [{dimension: draws.random() < 0.5 for dimension in ASPECTS} for _ in range(2)]
        levels[0][aspect], levels[1][aspect] = True, False
        texts = [_response(level, name, city, topic, draws) for level in levels]
        pairs.append({"prompt": prompt, "chosen": texts[0], "rejected": texts[1], "decides": aspect})
        for text, level in zip(texts, levels, strict=True):
            scores = {
                dimension: min(5.0, max(1.0, (5.0 if high else 1.0) + draws.gauss(0, 1)))
                for dimension, high in level.items()
            }
            ratings.append({"prompt": prompt, "response": text, "scores": scores})
    return pairs, ratings


def _response(level: dict[str, bool], name: str, city: str, topic: str, draws: random.Random) -> str:
    greeting, ending = STYLES[0] if level["style"] else STYLES[1]
    about = TOPICS[topic if level["relevance"] else draws.choice([other for other in TOPICS if other != topic])]
    who = f"For {name} in {city}" if level["coverage"] else "For the person there"
    first, second = draws.randint(11, 89), draws.randint(11, 89)
    total = first + second + (0 if level["arithmetic"] else draws.choice((-10, -2, -1, 1, 2, 10)))
    cost = f"The cost is {first} + {second} = {total} euros."
    body = f"{who}, {about}."
    again = "" if level["repetition"] else f" {body[:1].upper()}{body[1:]}"
    return f"{greeting} {body}{again} {cost} {ending}"


def _word(draws: random.Random) -> str:
    return "".join(draws.choice("bdfgklmnprst") + draws.choice("aeiou") for _ in range(3))
