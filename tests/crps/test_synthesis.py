"""Critiques read off a tree, chains grafted from them, and what chains must pass."""

import collections
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.crps import pairs, reflect
from raylm.crps.config import FilterConfig, PairConfig, SynthesizeConfig
from raylm.crps.filters import Contamination, fault, unique
from raylm.crps.run import candidates
from raylm.crps.synthesize import StructuralSynthesizer
from raylm.records import Message
from raylm.tasks.answers import equalities


def _critiques(tree):
    chosen = pairs.select(tree, PairConfig(), 0)
    return {
        pair.negative.answer + pair.contrast: (pair, reflect.StructuralAnalyst().reflect(tree, pair)) for pair in chosen
    }


def test_the_failing_step_is_found_and_quoted(tree):
    found = _critiques(tree)
    kinds = {key: critique.failure_modes[0].type for key, (_, critique) in found.items()}
    assert kinds == {"12hard": "arithmetic", "9hard": "premature_answer", "15hard": "misread", "11soft": "inefficient"}
    slip = found["12hard"][1].failure_modes[0]
    assert (slip.step_index, slip.quote, slip.fix) == (1, "9 + 2 = 12", "9 + 2 = 11")
    assert found["12hard"][1].divergence_step_index == 1
    for pair, critique in found.values():
        assert reflect.problems(critique, tree, pair) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"divergence_step_index": 9}, "divergence_step_index"),
        ({"pivots": [reflect.Pivot(step_a=7, step_b=0, why="")]}, "pivot"),
        (
            {"failure_modes": [reflect.FailureMode(step_index=1, type="misread", quote="not there", fix="")]},
            "does not say",
        ),
        ({"failure_modes": [reflect.FailureMode(step_index=9, type="misread", quote="", fix="")]}, "out of range"),
    ],
)
def test_an_unfounded_critique_is_refused(tree, change, word):
    pair, critique = _critiques(tree)["12hard"]
    assert word in reflect.problems(critique.model_copy(update=change), tree, pair)[0]


@pytest.mark.parametrize(
    ("pitfall", "line"),
    [("none", "9 + 2 = 11"), ("check", "9 + 2 = 11, check 11 - 2 = 9"), ("full", "9 + 2 = 11, not 12")],
)
def test_the_pivot_is_told_as_asked(tree, pitfall, line):
    pair, critique = _critiques(tree)["12hard"]
    text = StructuralSynthesizer(pitfall).write(tree, pair, critique)
    assert text.splitlines() == ["13 - 4 = 9", line, "Answer: 11"]
    assert fault(text, FilterConfig()) == ""


@given(st.sampled_from("+-*"), st.integers(-99, 99), st.integers(1, 99), st.integers(1, 9))
def test_a_check_always_holds(sign, left, right, slip):
    value = {"+": left + right, "-": left - right, "*": left * right}[sign]
    step = f"{left} {sign} {right} = {value}\n"
    told = StructuralSynthesizer("check")._remark(step, f"{left} {sign} {right} = {value + slip}")
    assert all(claim.holds for claim in equalities(told))


def test_chains_do_not_depend_on_the_gold_answer(tree):
    """Verdicts decide which paths are good; the gold answer itself never reaches a chain."""
    config = SynthesizeConfig()
    told = candidates(tree, config, collections.Counter())
    assert told == candidates(replace(tree, answer="secret"), config, collections.Counter())


def test_lineage_is_complete(tree):
    config = SynthesizeConfig()
    for chain in candidates(tree, config, collections.Counter()):
        assert chain.tree_id == tree.id
        assert chain.problem_id == tree.problem_id
        assert [message.role for message in chain.messages] == ["user", "assistant"]
        assert chain.negative_nodes
        assert chain.pivot_node in (0, *chain.anchor_nodes)
        assert reflect.Critique(**json.loads(chain.critique_json)).digest() == chain.critique_hash


def test_problems_without_a_contrast_are_counted_and_kept_or_skipped(grow):
    solved = grow("q", "2", ["1 + 1 = 2\nAnswer: 2"])
    failed = grow("q", "2", ["1 + 1 = 3\nAnswer: 3"])
    counts = collections.Counter()
    chains = [chain for tree in (solved, failed) for chain in candidates(tree, SynthesizeConfig(), counts)]
    assert [chain.contrast for chain in chains] == ["none"]
    assert (counts["problems"], counts["with_correct"], counts["with_pair"], counts["lone_paths"]) == (2, 1, 0, 1)
    assert candidates(solved, SynthesizeConfig(without_pair="skip"), counts) == []


@pytest.mark.parametrize(("method", "count"), [("best_path", 1), ("rejection", 2)])
def test_baselines_keep_correct_paths(tree, method, count):
    chains = candidates(tree, SynthesizeConfig(method=method), collections.Counter())
    assert len(chains) == count
    assert {chain.method for chain in chains} == {method}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 + 1 = 2\nAnswer: 2", ""),
        ("1 + 1 = 2", "final_answers"),
        ("Answer: 2\nAnswer: 2", "final_answers"),
        ("The wrong solution says 3.\nAnswer: 2", "meta_language"),
        ("1 + 1 = 3\nAnswer: 2", "arithmetic"),
        ("a\nb\nc\nAnswer: 2", "steps"),
    ],
)
def test_faults_are_named(text, reason):
    assert fault(text, FilterConfig(max_steps=3)) == reason


def _chains(tree, *responses):
    chain = candidates(tree, SynthesizeConfig(method="best_path"), collections.Counter())[0]
    return [replace(chain, id=str(i), messages=[Message("assistant", text)]) for i, text in enumerate(responses)]


def test_copies_are_dropped_and_different_chains_stay(tree):
    text = "First add the apples and the pears of both baskets together, which makes 12.\nAnswer: 12"
    near = text.replace("First add", "First, ADD")
    far = "Count the baskets one by one and double what is in each of them.\nAnswer: 12"
    assert [chain.id for chain in unique(_chains(tree, text, near, far), 0.8)] == ["0", "2"]


def test_leaks_of_evaluation_questions_are_found():
    question = "A farmer has seven cows and buys five more cows at the market; how many cows has he now?"
    leaks = Contamination([question, "2 + 2 = ?"], ngram=13)
    assert leaks.found("another question", f"Consider: {question} He has 12.")
    assert leaks.found("2 + 2 = ?", "4")
    assert not leaks.found("2 + 3 = ?", "5")
    assert not leaks.found("A farmer has seven cows and buys five more sheep at the fair", "12")
