"""From trees to chains without Ray: funnels, drops by reason, limits, lineage, and independence of the gold answer."""

import asyncio
import collections
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raylm.config import build
from raylm.crps import reflect
from raylm.crps.candidates import STAGES
from raylm.crps.config import SynthesizeConfig
from raylm.crps.forms import Forms
from raylm.crps.worker import SynthesizeWorker, make
from raylm.records import Chain, Tree, from_table, to_table
from raylm.storage import Store
from raylm.units import Unit

GOOD = "13 - 4 = 9\n9 + 2 = 11\nAnswer: 11"
SLIP = "13 - 4 = 9\n9 + 2 = 12\nAnswer: 12"
EARLY = "13 - 4 = 9\nAnswer: 9"
LONG = "4 - 2 = 2\n13 - 2 = 11\nThat is 11.\nAnswer: 11"
QUESTION = "Tom has 13 pens, gives 4 away and buys 2. How many has he?"
TERMS = st.lists(st.integers(1, 40), min_size=2, max_size=4)
SLIPS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=6)


def work(folder, trees, groups=None, questions=(), **config):
    """Chains and counts of a batch, as an actor makes them from a file of trees."""
    Store(str(folder)).write_table("data/part-00000.parquet", to_table(Tree, trees))
    worker = SynthesizeWorker(build(SynthesizeConfig, {"trees": str(folder), **config}), list(questions))
    groups = groups or [[row] for row in range(len(trees))]
    payload = {"questions": [[["data/part-00000.parquet", row] for row in rows] for rows in groups]}

    async def once():
        await worker.start()
        try:
            return await worker.run(Unit("key", payload), Store(str(folder)))
        finally:
            await worker.close()

    table, summary = asyncio.run(once())
    return from_table(Chain, table), summary["counts"]


def candidates(tree, config, counts):
    """Unverified chains of one tree."""
    return asyncio.run(make(config, None).of([tree], counts))[0]


@pytest.fixture
def mixed(tree):
    return tree(QUESTION, [(GOOD, "correct"), (SLIP, "wrong"), (EARLY, "wrong"), (LONG, "correct")], answer="11")


def test_every_method_counts_its_funnel(tmp_path, mixed, tree):
    failed = tree("q", [(SLIP, "wrong")], answer="11", problem_id="p2", id="t2")
    solved = tree("r", [(GOOD, "correct")], answer="11", problem_id="p3", id="t3")
    for method, rows, reached in (("crps", 3, 4), ("best_path", 2, 2), ("rejection", 3, 3)):
        chains, counts = work(tmp_path / method, [mixed, failed, solved], method=method)
        assert len(chains) == counts["selected"] == rows
        assert counts["candidates"] == reached
        assert (counts["problems"], counts["with_correct"], counts["with_wrong"]) == (3, 2, 2)
        assert {chain.method for chain in chains} == {method}
    _, counts = work(tmp_path / "crps", [mixed, failed, solved])
    assert (counts["with_pair"], counts["pairs"], counts["lone_paths"]) == (1, 3, 1)
    assert (counts["paths:correct"], counts["paths:wrong"]) == (3, 3)
    assert counts["failure:inefficient"] == counts["failure:arithmetic"] == counts["failure:premature_answer"] == 1
    assert counts["dropped:duplicate"] == 1  # both wrong paths part from the good one at the same step


def test_a_problem_without_a_pair_gives_its_best_path_or_nothing(tree):
    solved = tree("r", [(GOOD, "correct")], answer="11")
    counts = collections.Counter()
    (chain,) = candidates(solved, SynthesizeConfig(), counts)
    assert (chain.contrast, chain.messages[-1].content, chain.pivot_node) == ("none", GOOD, -1)
    assert (chain.analyst, chain.synthesizer, chain.critique_hash) == ("none", "none", "")
    assert candidates(solved, SynthesizeConfig(without_pair="skip"), counts) == []
    assert counts["lone_paths"] == 1
    assert counts["problems"] == 2


def test_what_the_verifier_does_not_confirm_is_dropped(tmp_path, mixed):
    chains, counts = work(tmp_path, [replace(mixed, answer="500")])
    assert chains == []
    assert counts["dropped:wrong"] == counts["candidates"] == 3


def test_copies_go_and_the_limit_holds_over_all_trees_of_a_question(tmp_path, mixed):
    other = replace(mixed, id="tree-2", problem_id="problem-2", question=QUESTION.upper())
    chains, counts = work(tmp_path, [mixed, other], groups=[[0, 1]])
    assert len(chains) == 2
    assert counts["dropped:duplicate"] == 4
    assert {chain.problem_id for chain in chains} == {"problem-1"}
    chains, counts = work(tmp_path, [mixed, other], groups=[[0, 1]], filters={"max_per_problem": 1})
    assert (len(chains), counts["dropped:over_limit"]) == (1, 1)


def test_leaks_are_dropped_and_what_is_clean_stays(tmp_path, mixed, tree):
    leaked = tree(
        f"Once more: {QUESTION} Think.", [(GOOD, "correct"), (SLIP, "wrong")], answer="11", id="t2", problem_id="p2"
    )
    clean = tree("How much is 13 - 4 + 2?", [(GOOD, "correct")], answer="11", id="t3", problem_id="p3")
    chains, counts = work(tmp_path, [leaked, clean], questions=[("held out", QUESTION)])
    assert [chain.tree_id for chain in chains] == ["t3"]
    assert counts["dropped:contaminated"] == 1
    told = tree("Why?", [(f"{QUESTION}\nAnswer: 11", "correct")], answer="11", id="t4")
    assert work(tmp_path, [told], questions=[("held out", QUESTION)])[0] == []


def test_a_faulty_path_is_dropped_by_the_name_of_its_fault(tmp_path, tree):
    lucky = "13 - 4 = 8\n8 + 3 = 11\nAnswer: 11"
    chains, counts = work(
        tmp_path, [tree(QUESTION, [(lucky, "correct"), ("So 11", "correct")], answer="11")], method="rejection"
    )
    assert chains == []
    assert (counts["dropped:arithmetic"], counts["dropped:final_answers"]) == (1, 1)


def test_lineage_is_complete(tmp_path, mixed):
    chains, _ = work(tmp_path, [mixed], prompt={"system": "Think.", "template": "Q: {question}"}, seed=7)
    assert len({chain.id for chain in chains}) == len(chains)
    for chain in chains:
        assert [(turn.role, turn.content) for turn in chain.messages[:-1]] == [
            ("system", "Think."), ("user", f"Q: {QUESTION}"),
        ]  # fmt: skip
        assert chain.messages[-1].role == "assistant"
        assert (chain.tree_id, chain.problem_id, chain.task) == (mixed.id, mixed.problem_id, mixed.task)
        assert (chain.explorer_model, chain.explorer_revision, chain.seed) == (mixed.model, mixed.revision, 7)
        assert (chain.analyst, chain.synthesizer, chain.verdict) == ("structural", "structural", "correct")
        critique = reflect.Critique.model_validate_json(chain.critique_json)
        assert (critique.digest(), critique.contrast_type) == (chain.critique_hash, chain.contrast)
        paths = {tuple(path.node_ids): path.verdict for path in mixed.trajectories}
        assert paths[tuple(chain.anchor_nodes)] == "correct"
        assert paths[tuple(chain.negative_nodes)] == ("wrong" if chain.contrast == "hard" else "correct")
        assert chain.pivot_node in (0, *chain.anchor_nodes)
        assert chain.pivot_node in (0, *chain.negative_nodes)


def test_a_good_path_alone_is_reflected_on_without_a_contrast(tmp_path, mixed):
    chains, counts = work(tmp_path, [mixed], method="good_only")
    (chain,) = chains
    assert (chain.contrast, chain.negative_nodes, chain.pivot_node) == ("none", [], -1)
    assert chain.analyst == "structural"
    assert chain.messages[-1].content != GOOD
    assert chain.messages[-1].content.splitlines()[-1] == "Answer: 11"
    assert "claimed_pivots" not in counts


def test_shuffled_critiques_are_another_problems(tmp_path, mixed, tree):
    other = "20 + 5 = 25\n25 - 1 = 24\nAnswer: 24"
    second = tree(
        "Ann has 20 eggs, finds 5 and drops 1. How many?",
        [(other, "correct"), ("20 + 5 = 26\n26 - 1 = 25\nAnswer: 25", "wrong")],
        answer="24", id="t2", problem_id="p2",
    )  # fmt: skip
    own, _ = work(tmp_path / "own", [mixed, second], pairs={"hard_ratio": 1})
    shuffled, counts = work(tmp_path / "other", [mixed, second], method="shuffled", pairs={"hard_ratio": 1})
    hashes = {name: {chain.critique_hash for chain in chains} for name, chains in (("own", own), ("other", shuffled))}
    assert hashes["other"] <= hashes["own"]
    by_tree = {chain.tree_id: chain.critique_hash for chain in own}
    assert all(chain.critique_hash != by_tree[chain.tree_id] for chain in shuffled)
    assert counts["valid_critiques"] == counts["candidates"]
    _, alone = work(tmp_path / "alone", [mixed], method="shuffled", pairs={"hard_ratio": 1})
    assert alone["dropped:invalid_critique"] == alone["candidates"] == 2


def test_corrections_ask_for_the_mistake_and_mend_it(tmp_path, mixed):
    chains, counts = work(tmp_path, [mixed], method="correction")
    asked = [chain.messages[-2].content for chain in chains]
    assert all(text.startswith(f"{QUESTION}\n\nFind the first mistake") for text in asked)
    assert asked[0].endswith(EARLY) or asked[0].endswith(SLIP)
    told = [chain.messages[-1].content for chain in chains]
    assert any(
        text.startswith("Step 2 is the first to go wrong: '9 + 2 = 12' should be '9 + 2 = 11'.") for text in told
    )
    assert all(text.endswith(f"Corrected:\n{GOOD}") for text in told)
    assert {chain.synthesizer for chain in chains} == {"correction"}
    assert counts["selected"] == 2


@settings(deadline=None)
@given(TERMS, SLIPS, st.text(max_size=6), st.sampled_from(["none", "check", "full"]))
def test_the_gold_answer_changes_nothing_that_is_written(grown_sum, terms, slips, gold, pitfall):
    grown = grown_sum(terms, [(at % (len(terms) - 1), slip) for at, slip in slips])
    config = SynthesizeConfig(pitfall=pitfall)
    first, second = collections.Counter(), collections.Counter()
    changed = replace(grown, answer=gold, checker="exact", metadata_json='{"answer": "x"}')
    assert candidates(grown, config, first) == candidates(changed, config, second)
    assert first == second


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sums=st.lists(st.tuples(TERMS, SLIPS, st.booleans()), min_size=1, max_size=4),
    method=st.sampled_from([name for name in STAGES if name != "solve"]),
    choose=st.sampled_from(["visits", "longest_prefix", "random"]),
    without_pair=st.sampled_from(["best_path", "skip"]),
    limit=st.integers(1, 5),
)
def test_a_funnel_never_increases_and_every_candidate_is_accounted_for(  # noqa: PLR0917
    tmp_path, grown_sum, sums, method, choose, without_pair, limit
):
    trees = []
    for number, (terms, slips, spoiled) in enumerate(sums):
        grown = grown_sum(terms, [(at % (len(terms) - 1), slip) for at, slip in slips], id=f"t{number}")
        trees.append(replace(grown, answer="-1") if spoiled else grown)
    held_out = [("held out", trees[0].question)] if limit > 3 else []
    config = {
        "method": method, "without_pair": without_pair, "pairs": {"choose": choose},
        "filters": {"max_per_problem": limit},
    }  # fmt: skip
    chains, counts = work(tmp_path, trees, questions=held_out, **config)
    assert (chains, counts) == work(tmp_path, trees, questions=held_out, **config)
    counts = collections.Counter(counts)
    reached = [counts[name] for name in STAGES[method]]
    turn = STAGES[method].index("candidates")
    assert reached[:turn] == sorted(reached[:turn], reverse=True)
    assert reached[turn:] == sorted(reached[turn:], reverse=True)
    assert reached[0] == len(trees)
    assert reached[-1] == len(chains)
    dropped = sum(count for name, count in counts.items() if name.startswith("dropped:"))
    assert counts["candidates"] == counts["selected"] + dropped
    assert max(collections.Counter(chain.tree_id for chain in chains).values(), default=0) <= limit


def test_an_anchor_of_poor_form_is_counted_and_makes_no_chain(tree):
    grown = tree("13 - 4 + 2?", [(GOOD, "correct"), (SLIP, "wrong")], answer="11")
    config = build(SynthesizeConfig, {"trees": "unused", "pairs": {"anchor": "best_form", "keep": 0.5}})
    for floor, chains in ((0.5, 1), (0.9, 0)):
        forms = Forms({"=": 1.0, "#": 0.0}, learned_from=99, floor=floor * 0.4)
        counts = collections.Counter()
        found = asyncio.run(make(config, None, forms).of([grown], counts))[0]
        assert len(found) == chains
        assert counts["poor_form"] == 1 - chains
        assert counts["with_correct"] == 1


@pytest.fixture(scope="module")
def wordy(tmp_path_factory):
    """A reward model that thinks well of responses of more than nine words."""
    import math

    import torch

    from raylm.llm import models
    from raylm.srm import backbone
    from raylm.srm.config import BranchConfig, FusionConfig
    from raylm.srm.model import RewardModel
    from raylm.srm.structure import Structure

    body = backbone.load(models.resolve("micro").path, max_length=256)
    structure = Structure(body, [BranchConfig(name="length", kind="tool")], FusionConfig(gate="constant"))
    with torch.no_grad():
        structure.fusion.weight.fill_(10.0)
        structure.fusion.centre.fill_(math.log1p(9.5))
    path = tmp_path_factory.mktemp("wordy")
    RewardModel(structure, "wordy", "none").save(path)
    return str(path)


def test_a_reward_model_drops_what_it_thinks_little_of(tmp_path, mixed, wordy):
    every, counts = work(tmp_path / "all", [mixed], method="rejection")
    kept, filtered = work(tmp_path / "kept", [mixed], method="rejection", filters={"reward_model": wordy})
    responses = [[chain.messages[-1].content for chain in chains] for chains in (every, kept)]
    assert [LONG in own for own in responses] == [True, True]
    assert [GOOD in own for own in responses] == [True, False]
    assert filtered["dropped:low_reward"] == 1
    assert filtered["decontaminated"] == counts["decontaminated"]
    none, filtered = work(
        tmp_path / "none", [mixed], method="rejection", filters={"reward_model": wordy, "min_reward": 1.0}
    )
    assert not none
    assert filtered["dropped:low_reward"] == 2
