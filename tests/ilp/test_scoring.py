"""Teacher forcing, and what follows from it without asking."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raylm.ilp.scoring import Scorer, divergence_from, min_k
from raylm.llm import models
from raylm.llm.chat import IGNORE, training_ids
from raylm.train.data import Sample

MODEL = models.resolve("micro").path


def samples_of(*answers):
    tokenizer = models.load_tokenizer(MODEL)
    found = []
    for number, answer in enumerate(answers):
        turns = [{"role": "user", "content": "q" * (1 + number)}, {"role": "assistant", "content": answer}]
        found.append(Sample(str(number), *training_ids(tokenizer, turns)))
    return found


def test_scores_are_those_of_the_model_itself_whatever_the_batch():
    samples = samples_of("yes", "a longer answer", "no", "42")
    scorer, model = Scorer(MODEL), models.load_model(MODEL, torch.float32).eval()
    alone = Scorer(MODEL, tokens=1).score(samples, prompts=True)
    for sample, score, single in zip(samples, scorer.score(samples, prompts=True), alone, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([sample.ids])).logits[0, :-1].log_softmax(-1)
        targets = torch.tensor(sample.ids[1:])
        each = logits.gather(1, targets[:, None])[:, 0]
        mask = torch.tensor(sample.labels[1:]) != IGNORE
        assert score.logprob == pytest.approx(float(each[mask].sum()), rel=1e-4)
        assert score.least == pytest.approx(float(each[mask].min()), rel=1e-4)
        assert score.tokens == sample.label_tokens
        assert score.nll == pytest.approx(-float(each[mask].mean()), rel=1e-4)
        assert score.prompt == pytest.approx(each[~mask].tolist(), rel=1e-3)
        assert score.greedy == bool((logits.argmax(-1) == targets)[mask].all())
        assert single.logprob == pytest.approx(score.logprob, rel=1e-4)


@pytest.mark.parametrize("tokens", [1, 100, 4096])
def test_options_that_begin_alike_score_as_they_do_alone(tokens):
    tokenizer = models.load_tokenizer(MODEL)

    def sample(asked, answer):
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return Sample(answer, *training_ids(tokenizer, turns))

    asked = {"which": ("yes", "yes it is", "no"), "which one": ("a",), "where?": ("here", "there"), "what": (),
             "who is": ("she", "she")}  # fmt: skip
    groups = [[sample(question, answer) for answer in answers] for question, answers in asked.items()]
    scorer = Scorer(MODEL, tokens=tokens)
    for group, scores in zip(groups, scorer.score_options(groups), strict=True):
        alone = scorer.score(group)
        assert [score.logprob for score in scores] == pytest.approx([score.logprob for score in alone], rel=1e-4)
        assert [score.least for score in scores] == pytest.approx([score.least for score in alone], rel=1e-4)
        assert [(x.tokens, x.greedy) for x in scores] == [(x.tokens, x.greedy) for x in alone]


def test_an_answer_with_more_than_half_of_the_probability_beats_every_other():
    """The shortcut of P1: answers exclude each other, so that their probabilities add up to at most 1."""
    draw = np.random.default_rng(0)
    for _ in range(200):
        chances = draw.dirichlet(np.full(6, 0.3))
        if chances[0] > 0.5:
            assert chances[0] > chances[1:].max()


@given(st.floats(0, 1))
def test_the_divergence_from_one_outcome_is_that_of_the_definition(p):
    left, right = np.array([p, 1 - p]), np.array([1.0, 0.0])
    middle = (left + right) / 2

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    assert divergence_from(p) == pytest.approx((kl(left, middle) + kl(right, middle)) / 2, abs=1e-9)
    assert 0 <= divergence_from(p) <= math.log(2) + 1e-12


def test_min_k_is_the_mean_of_the_least_expected_tokens():
    assert min_k([-1.0, -8.0, -2.0, -4.0, -3.0], 0.4) == -6.0
    assert min_k([-1.0, -2.0], 0.2) == -2.0
    assert min_k([], 0.2) == 0.0
