"""Grafted chains: what is told at the pivot, one clean text, and nothing of the gold answer."""

import dataclasses
import inspect
from typing import get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.crps import pairs, reflect
from raylm.crps.config import FilterConfig, PairConfig
from raylm.crps.filters import fault
from raylm.crps.synthesize import JOINTS, NOT_YET, StructuralSynthesizer, Synthesizer
from raylm.records import Problem, Tree
from raylm.tasks.answers import equalities, extract_answer, final_answers

QUESTION = "Tom has 13 pens, gives 4 away and buys 2. How many has he?"
GOOD = "13 - 4 = 9\n9 + 2 = 11\nAnswer: 11"


def written(grown, pitfall, **config):
    """Every chain of a tree beside its pair."""
    analyst, synthesizer = reflect.StructuralAnalyst(), StructuralSynthesizer(pitfall)
    chosen = pairs.select(grown, PairConfig(**config), 0)
    return [(pair, synthesizer.graft(pair, analyst.critique(pair))) for pair in chosen]


def plain(line):
    """A line with the one joint, whichever was chosen."""
    for joint in JOINTS:
        line = line.replace(joint, JOINTS[0])
    return line.replace(NOT_YET[1], NOT_YET[0])


@pytest.mark.parametrize(
    ("negative", "pitfall", "expected"),
    [
        ("13 - 4 = 9\n9 + 2 = 12\nAnswer: 12", "none", "13 - 4 = 9|9 + 2 = 11|Answer: 11"),
        ("13 - 4 = 9\n9 + 2 = 12\nAnswer: 12", "check", "13 - 4 = 9|9 + 2 = 11, since 11 - 2 = 9|Answer: 11"),
        ("13 - 4 = 9\n9 + 2 = 12\nAnswer: 12", "full", "13 - 4 = 9|9 + 2 = 11 (not 12), since 11 - 2 = 9|Answer: 11"),
        ("13 + 4 = 17\n17 + 2 = 19\nAnswer: 19", "check", "13 - 4 = 9, since 9 + 4 = 13|9 + 2 = 11|Answer: 11"),
        (
            "13 + 4 = 17\n17 + 2 = 19\nAnswer: 19",
            "full",
            "13 - 4 = 9 (not 13 + 4), since 9 + 4 = 13|9 + 2 = 11|Answer: 11",
        ),
        (
            "13 - 4 = 9\nAnswer: 9",
            "full",
            "13 - 4 = 9|The answer needs one more step: 9 + 2 = 11, since 11 - 2 = 9|Answer: 11",
        ),
        # The answer line is never touched: the last operation before it is checked.
        ("13 - 4 = 9\n9 + 2 = 11\nAnswer: 12", "check", "13 - 4 = 9|9 + 2 = 11, since 11 - 2 = 9|Answer: 11"),
        # The slip comes later than the divergence, at an operation that the good path has as well.
        ("Start.\n13 - 4 = 8\nAnswer: 8", "full", "13 - 4 = 9 (not 8), since 9 + 4 = 13|9 + 2 = 11|Answer: 11"),
    ],
)
def test_the_pivot_is_told_as_asked(tree, negative, pitfall, expected):
    ((_, text),) = written(tree(QUESTION, [(GOOD, "correct"), (negative, "wrong")]), pitfall)
    assert [plain(line) for line in text.splitlines()] == expected.split("|")
    assert fault(text, QUESTION, FilterConfig()) == ""


@pytest.mark.parametrize("pitfall", ["none", "check", "full"])
def test_a_soft_pair_and_words_without_numbers_get_no_remark(tree, pitfall):
    long = "4 - 2 = 2\n13 - 2 = 11\nThat is 11.\nAnswer: 11"
    ((pair, text),) = written(tree(QUESTION, [(GOOD, "correct"), (long, "correct")]), pitfall)
    assert (pair.contrast, text) == ("soft", GOOD)
    words = "Whales breathe air.\nAnswer: yes"
    ((_, text),) = written(tree("Are whales mammals?", [(words, "correct"), ("Answer: no", "wrong")]), pitfall)
    assert text == words


def test_the_wording_is_varied_and_always_the_same_for_the_same_step(grown_sum):
    seen = set()
    for number in range(12):
        grown = grown_sum([number, 5, 9], [(1, 3)])
        ((_, text),) = written(grown, "check")
        assert written(grown, "check")[0][1] == text
        seen.add(next(joint for joint in JOINTS if joint in text))
    assert seen == set(JOINTS)


@settings(deadline=None)
@given(
    terms=st.lists(st.integers(-60, 60).filter(bool), min_size=2, max_size=6),
    slips=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), min_size=1, max_size=6),
    pitfall=st.sampled_from(["none", "check", "full"]),
    how=st.sampled_from(["longest_prefix", "visits", "random"]),
)
def test_every_chain_is_one_clean_right_chain_of_thought(grown_sum, terms, slips, pitfall, how):
    grown = grown_sum(terms, [(at % (len(terms) - 1), slip) for at, slip in slips])
    chains = written(grown, pitfall, choose=how)
    assert chains
    for pair, text in chains:
        assert fault(text, grown.question, FilterConfig()) == ""
        assert extract_answer(text) == str(sum(terms))
        assert final_answers(text) == 1
        assert text.splitlines()[-1] == pair.anchor.text.splitlines()[-1]  # in the path's own format
        assert "".join(pair.anchor.steps[: pair.shared]) in text or how != "longest_prefix"
        assert all(claim.holds for claim in equalities(text))
        added = len(equalities(text)) - len(equalities(pair.anchor.text))
        assert added == (pitfall != "none")
        assert len(text.splitlines()) == len(pair.anchor.text.splitlines())


def test_neither_analyst_nor_synthesizer_can_be_given_the_gold_answer():
    """What they receive is a pair and a critique; no field of a pair, however deep, is a problem or a tree."""
    assert list(inspect.signature(reflect.Analyst.reflect).parameters) == ["self", "pair", "name"]
    assert list(inspect.signature(Synthesizer.write).parameters) == ["self", "pair", "critique", "name"]
    seen, waiting = set(), [pairs.Pair]
    while waiting:
        kind = waiting.pop()
        seen.add(kind)
        for name, hint in get_type_hints(kind, vars(pairs)).items():
            assert name not in ("answer", "gold", "checker", "metadata_json", "verdict", "reward")
            waiting += [part for part in (hint, *getattr(hint, "__args__", ())) if dataclasses.is_dataclass(part)]
    assert seen == {pairs.Pair, pairs.Path, pairs.Rescue}
    assert not seen & {Problem, Tree}
