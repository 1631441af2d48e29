"""Deterministic branches on texts whose figures can be worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.srm.tools import TOOLS

ASKED = "Where did Marta park the 2 red cars?"


@pytest.mark.parametrize(
    ("tool", "prompt", "response", "value"),
    [
        ("relevance", "red cars", "red cars", 1.0),
        ("relevance", "red cars", "blue boats", 0.0),
        ("relevance", "red cars", "the", None),
        ("coverage", ASKED, "Marta parked 2 cars.", 1.0),
        ("coverage", ASKED, "She parked 2 cars.", 0.5),
        ("coverage", "where is it?", "here", None),
        ("support", ASKED, "Marta park cars", 1.0),
        ("support", ASKED, "Marta sold boats", 1 / 3),
        ("arithmetic", "", "2 + 2 = 4, so 4 * 3 = 13", 0.5),
        ("arithmetic", "", "four", None),
        ("format", "", "Answer: 4", 1.0),
        ("format", "", "Answer: 4 (", 2 / 3),
        ("length", "", "one two three", math.log(4)),
        ("repetition", "", "a b c d", 0.0),
        ("repetition", "", "a b c a b c", 0.25),
        ("repetition", "", "a", 0.0),
        ("style", "A quiet day.", "A quiet day.", 1.0),
        ("style", "A quiet day.", "...", None),
    ],
)
def test_values(tool, prompt, response, value):
    assert TOOLS[tool](prompt, response) == (value if value is None else pytest.approx(value))


def test_another_manner_is_less_alike():
    calm = "Thank you for your message; we are glad to help."
    assert TOOLS["style"](calm, "Many thanks for your letter; we were pleased to reply.") > TOOLS["style"](
        calm, "YO!!! LOL!!!"
    )


@given(st.text(max_size=60), st.text(max_size=60))
def test_every_tool_says_a_finite_number_or_nothing_of_any_text(prompt, response):
    for name, tool in TOOLS.items():
        value = tool(prompt, response)
        assert value is None or (math.isfinite(value) and value >= 0), name
        assert value is None or name == "length" or value <= 1 + 1e-9, name
