"""Retrieval losses: the published order of distances costs nothing, collapse costs what it should, masks are exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from raylm.retrieval.losses import HARD, Candidates, CollapseAlarm, Margins, allowed, loss

KINDS = (
    "quadruplet", "quadruplet_b", "triplet", "triplet_hard", "triplet_own", "infonce", "infonce_hard", "margin_mse"
)  # fmt: skip


def drawn(seed=0, batch=4, hard=2, dimensions=8, same=False):
    torch.manual_seed(seed)
    vectors = [torch.ones(shape) if same else torch.randn(shape) for shape in
               ((batch, dimensions), (batch, dimensions), (batch, hard, dimensions))]  # fmt: skip
    queries, positives, negatives = (F.normalize(vector, dim=-1) for vector in vectors)
    return Candidates(queries, positives, negatives, torch.ones(batch, batch * (1 + hard), dtype=torch.bool))


def by_loop(kind, batch, margins):
    """The margin losses, one pair at a time."""
    n, hard = batch.size, batch.hard.shape[1]

    def distance(a, b):
        return 1 - float(a @ b)

    close = [distance(q, d) for q, d in zip(batch.queries, batch.positives, strict=True)]
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    own = [(i, h) for i in range(n) for h in range(hard)]
    simple = [max(0.0, close[i] - distance(batch.queries[i], batch.positives[j]) + margins.simple) for i, j in pairs]
    first = [max(0.0, close[i] - distance(batch.queries[i], batch.hard[i, h]) + margins.hard) for i, h in own]
    last = []
    for i in range(n):
        for h in range(hard):
            for j in range(n):
                if i == j:
                    continue
                near = distance(batch.queries[i], batch.hard[i, h])
                far = distance(batch.queries[i], batch.positives[j])
                if kind == "quadruplet_b":
                    near = distance(batch.queries[i], batch.positives[i])
                    far = distance(batch.hard[i, h], batch.positives[j])
                last.append(max(0.0, near - far + margins.between))
    total = 0.0 if kind == "triplet_own" else sum(simple) / len(simple)
    if kind != "triplet":
        total += sum(first) / len(first)
    if kind.startswith("quadruplet"):
        total += margins.weight * sum(last) / len(last)
    return total


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.sampled_from(["quadruplet", "quadruplet_b", "triplet", "triplet_hard", "triplet_own"]))
def test_tables_give_what_the_formulae_say(seed, kind):
    batch = drawn(seed)
    assert float(loss(kind, batch)) == pytest.approx(by_loop(kind, batch, Margins()), abs=1e-5)


def test_one_vector_for_all_texts_costs_the_margins():
    margins = Margins(0.1, 0.4, 0.2, 0.5)
    assert float(loss("quadruplet", drawn(same=True), margins=margins)) == pytest.approx(margins.collapsed)


def test_the_asked_for_order_of_distances_costs_nothing():
    axis = torch.eye(8)
    positives = axis[:4]
    hard = F.normalize(0.8 * axis[:4] + 0.6 * axis[4:], dim=-1)[:, None]
    batch = Candidates(positives.clone(), positives, hard, torch.ones(4, 8, dtype=torch.bool))
    assert float(loss("quadruplet", batch, margins=Margins(0.1, 0.5, 0.3))) == pytest.approx(0, abs=1e-6)


def test_infonce_is_cross_entropy_over_the_candidates():
    batch = drawn()
    table = batch.similarities() / 0.05
    torch.testing.assert_close(loss("infonce_hard", batch), F.cross_entropy(table, torch.arange(4)))
    torch.testing.assert_close(loss("infonce", batch), F.cross_entropy(table[:, :4], torch.arange(4)))


@pytest.mark.parametrize("kind", ["quadruplet", "triplet", "triplet_hard", "infonce"])
def test_a_document_that_does_not_count_has_no_influence_on_its_query(kind):
    batch = drawn()
    batch.allowed[0, 1] = batch.allowed[0, 4] = False  # another positive, and the first own hard negative
    changed = Candidates(batch.queries, batch.positives.clone(), batch.hard.clone(), batch.allowed)
    changed.hard[0, 0] = changed.positives[1] = F.normalize(torch.randn(8), dim=-1)
    before, after = (torch.autograd.grad(loss(kind, c), c.queries)[0][0] for c in (_watched(batch), _watched(changed)))
    torch.testing.assert_close(before, after)
    batch.allowed[0, 1] = True
    assert not torch.equal(torch.autograd.grad(loss(kind, (c := _watched(batch))), c.queries)[0][0], before)


def _watched(batch):
    return Candidates(batch.queries.clone().requires_grad_(), batch.positives, batch.hard, batch.allowed)


def test_duplicates_and_other_relevant_documents_are_no_negatives():
    found = allowed(["a", "b", "a"], [["x"], ["c"], ["x"]], [{"a", "x"}, {"b"}, {"a"}])
    assert found.tolist() == [
        [True, True, False, False, True, False],
        [True, True, False, True, True, False],
        [False, True, True, True, True, False],
    ]


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_the_mask_is_what_its_rules_say(data):
    names, size, each = st.integers(0, 6), data.draw(st.integers(1, 5)), data.draw(st.integers(0, 3))
    positives = data.draw(st.lists(names, min_size=size, max_size=size))
    hard = [data.draw(st.lists(names, min_size=each, max_size=each)) for _ in range(size)]
    relevant = [data.draw(st.sets(names, max_size=3)) for _ in range(size)]
    documents = [*positives, *(name for row in hard for name in row)]
    expected = [
        [
            at == row or (name not in relevant[row] and name != positives[row] and name not in documents[:at])
            for at, name in enumerate(documents)
        ]
        for row in range(size)
    ]
    assert allowed(positives, hard, relevant).tolist() == expected


@pytest.mark.parametrize("kind", HARD)
def test_hard_negatives_are_asked_for(kind):
    with pytest.raises(ValueError, match="needs hard negatives"):
        loss(kind, drawn(hard=0))


@pytest.mark.parametrize("margins", [(0.3, 0.1, 0.1), (0.1, 0.15, 0.1), (0.0, 0.3, 0.1)])
def test_margins_that_contradict_each_other_are_refused(margins):
    with pytest.raises(ValueError, match="margins"):
        Margins(*margins)


@pytest.mark.parametrize("kind", KINDS)
def test_soft_targets_pull_where_they_point(kind):
    batch = drawn()
    soft = F.one_hot(torch.tensor([1, 2, 3, 0]), 12).float()
    plain, pulled = (loss(kind, batch, teacher=torch.zeros(4, 3), soft=soft, alpha=alpha) for alpha in (0.0, 1.0))
    expected = F.cross_entropy(batch.similarities() / 0.05, torch.tensor([1, 2, 3, 0]))
    torch.testing.assert_close(pulled - plain, expected)


def test_the_alarm_rings_when_all_vectors_are_one():
    alarm = CollapseAlarm(patience=3)
    spread, one = drawn().queries, drawn(same=True).queries
    assert not any(alarm.see(spread) for _ in range(5))
    assert [alarm.see(one) for _ in range(3)] == [False, False, True]
    assert not alarm.see(spread)
