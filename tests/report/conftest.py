"""Hand-made artefacts of every stage, written through StageRun like the real ones."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from raylm.crps.config import SynthesizeConfig
from raylm.evaluation.config import EvaluateConfig
from raylm.evaluation.score import compare, score
from raylm.pipeline.config import PipelineConfig
from raylm.records import Chain, Judgement, Message, Node, Trajectory, Tree, from_table, to_table
from raylm.search.config import ExploreConfig
from raylm.storage import StageRun
from raylm.train.config import FinetuneConfig

EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"


def make_tree(number, kinds=("correct", "wrong"), branch=1, note=""):
    """A tree whose paths share `branch` steps and then go their own ways, one path for each of `kinds`."""
    nodes = [Node(0, -1, "", [], 0.0, 0, 0.0, False, -1)]
    paths = []

    def add(parent, text, terminal=False):
        nodes.append(Node(len(nodes), parent, text, [1, 2, 3], -0.5, 0, 0.0, terminal, 0))
        return len(nodes) - 1

    shared, at = [], 0
    for step in range(branch):
        at = add(at, f"Step {step}: {number} + {step} = {number + step}.{note}\n")
        shared.append(at)
    for index, kind in enumerate(kinds):
        own = [add(at, f"Way {index} takes {number} * {index}.\n")]
        own.append(add(own[0], f"Answer: {number + index}", terminal=True))
        ids = shared + own
        text = "".join(nodes[i].text for i in ids)
        reward = 1.0 if kind == "correct" else 0.0
        paths.append(Trajectory(ids, text, str(number + index), kind, reward, 3 * len(ids), -1.5, "stop"))
        for i in [0, *ids]:
            node = nodes[i]
            nodes[i] = Node(
                node.id, node.parent, node.text, node.token_ids, node.logprob, node.visits + 1,
                node.value_sum + reward, node.terminal, node.round,
            )  # fmt: skip
    return Tree(
        f"tree{number}", f"p{number}", "sums" if number % 2 else "products", f"What is {number} plus one?{note}",
        str(number), "number", "scripted", "r1", 0, "c0", 2, nodes, paths, 40, 12 * len(nodes),
    )  # fmt: skip


def make_judgement(suite, number, verdict, *, response="", sample=0, finish="stop", task=""):
    task = task or ("sums" if number % 2 else "products")
    question, gold = f"What is {number} plus one?", str(number + 1)
    response = response or f"{number} + 1\nAnswer: {gold}"
    return Judgement(suite, f"p{number}", task, question, gold, response, gold, verdict, 20, 9, finish, sample)


@pytest.fixture
def explore_store(tmp_path):
    kinds = [("correct", "wrong"), ("correct", "correct"), ("wrong",), ("correct", "wrong", "unverifiable"), ()]
    trees = [make_tree(n, kinds[n % 5], branch=1 + n % 3, note=EVIL if n == 3 else "") for n in range(30)]
    config = ExploreConfig(out=str(tmp_path / "explore"), problems=({"name": "chain_sum", "limit": 30},))
    stage = StageRun("explore", config, config.out)
    rows = stage.write_rows([to_table(Tree, trees[:20]), to_table(Tree, trees[20:])])
    stage.finish(
        rows,
        timing={"seconds": 12.5},
        model={"name": "scripted", "revision": "r1"},
        funnel={"problems": 30, "solved": 18, "mixed": 12},
        tokens={"prompt": 900, "generated": sum(tree.generated_tokens for tree in trees)},
    )
    return stage.store


@pytest.fixture
def evaluations(tmp_path):
    """Stores of an evaluation before and one after, which fixes and breaks some questions."""
    rng = np.random.default_rng(0)
    stores = {}
    rows = {}
    for name, chance in (("before", 0.3), ("after", 0.6)):
        config = EvaluateConfig(
            out=str(tmp_path / f"evaluate_{name}"), suites={"in_domain": ({"name": "a", "limit": 1},)}
        )
        rows[name] = []
        for suite, count in (("in_domain", 60), ("out_of_domain", 30)):
            for number in range(count):
                verdict = (
                    "correct" if rng.random() < chance else rng.choice(["wrong", "wrong", "wrong", "unverifiable"])
                )
                text = EVIL if number == 1 else f"I am {name}: {number}.\nAnswer: {number}"
                rows[name].append(make_judgement(suite, number, str(verdict), response=text))
                rows[name] += [
                    make_judgement(
                        suite, number, "correct" if rng.random() < chance else "wrong", response=text, sample=sample
                    )
                    for sample in (1, 2, 3)
                ]
        inputs = {"baseline": stores["before"].manifest().digest()} if stores else {}
        stage = StageRun("evaluate", config, config.out, inputs)
        figures = {"suites": score(rows[name])}
        if stores:
            figures["comparison"] = compare(rows["before"], rows["after"], 1000, 0)
        stage.finish(
            stage.write_rows([to_table(Judgement, rows[name])]),
            timing={"seconds": 30.0, "questions_per_second": 3.0, "engine": "scripted"},
            model={"name": name, "revision": "abc"},
            tokens={"prompt": 100, "generated": 5000},
            figures=figures,
        )
        stores[name] = stage.store
    return SimpleNamespace(**stores)


def make_chain(tree):
    anchor, negative = tree.trajectories[:2]
    shared = [a for a, b in zip(anchor.node_ids, negative.node_ids, strict=False) if a == b]
    critique = {"success_pattern": "keeps the order", "failure_modes": [{"step": 1, "fix": EVIL}]}
    messages = [Message("user", tree.question), Message("assistant", anchor.text)]
    return Chain(
        f"chain-{tree.id}", messages, tree.problem_id, tree.task, tree.id, "crps", "hard", anchor.node_ids,
        negative.node_ids, shared[-1], json.dumps(critique), "k0", "correct", "scripted", "r1", "structural",
        "structural", 0, 0,
    )  # fmt: skip


@pytest.fixture
def synthesize_store(tmp_path, explore_store):
    trees = from_table(Tree, explore_store.read_data())
    chains = [make_chain(tree) for tree in trees if len(tree.trajectories) > 1]
    config = SynthesizeConfig(
        out=str(tmp_path / "synthesize"), trees=explore_store.url, analyst="llm", synthesizer="structural"
    )
    stage = StageRun("synthesize", config, config.out, {"trees": explore_store.manifest().digest()})
    stage.finish(
        stage.write_rows([to_table(Chain, chains)]),
        timing={"seconds": 1.5},
        funnel={"pairs": 40, "verified": 30, "selected": len(chains)},
        tokens={"generated": 0},
        figures={
            "dropped": {"dropped_near_duplicate": 7, "dropped_wrong": 3},
            "rejected_critiques": {"json": 5, "content": 2},
            "pivots_within_one": 0.75,
            "failure_types": {"premature_answer": 3, "arithmetic": 9},
            "without_correct": 6,
            "without_wrong": 5,
            "cost": {
                "explorer": {"prompt_tokens": 9000, "generated_tokens": 4321},
                "analyst": {"prompt_tokens": 700, "generated_tokens": 87},
                "synthesizer": {"prompt_tokens": 0, "generated_tokens": 0},
                "tokens_per_selected_chain": 210.4,
            },
        },
    )
    return stage.store


@pytest.fixture
def finetune_store(tmp_path):
    config = FinetuneConfig(out=str(tmp_path / "finetune"), isolation={"protect": 0.1})
    stage = StageRun("finetune", config, config.out)
    count = 120
    noise = np.random.default_rng(0).normal(0, 0.1, count)
    steps = {
        "step": list(range(1, count + 1)),
        "epoch": [step / 40 for step in range(1, count + 1)],
        "loss": [2 / (1 + step / 30) + noise[step] for step in range(count)],
        "lr": [2e-5 * (1 - step / count) for step in range(count)],
        "grad_norm": [1 + abs(noise[step]) for step in range(count)],
        "label_tokens": [300 + step % 7 for step in range(count)],
        "total_tokens": [900 + step % 11 for step in range(count)],
    }
    stage.store.write_table("data/steps.parquet", pa.table(steps))
    tensors = [
        f"model.layers.{block}.{part}.weight" for block in range(4) for part in ("self_attn.q_proj", "mlp.up_proj")
    ]
    masks = {
        "step": [30, 60, 90],
        "threshold": [1.0, 2.0, 3.0],
        "parameters": [1000] * 3,
        "density": [0.1] * 3,
        "jaccard_previous": [None, 0.6, 0.7],
        "jaccard_first": [None, 0.6, 0.5],
        "entered": [100, 25, 18],
        "released": [0, 25, 18],
        "layers_json": [
            json.dumps({name: 0.05 + 0.01 * place * refresh for place, name in enumerate(tensors)})
            for refresh in (1, 2, 3)
        ],
    }
    stage.store.write_table("data/isolation.parquet", pa.table(masks))
    shares = {"first": (0.1, 0.8, 0.3), "second": (0.2, 0.2, 0.9)}
    watch = [
        {"step": step, "set": name, "loss": 1 - share, "token_accuracy": share, "exact": share}
        for name, found in shares.items()
        for step, share in zip((0, 60, 120), found, strict=True)
    ]
    stage.store.write_table("data/watch.parquet", pa.Table.from_pylist(watch))
    timing = {"seconds": 60.0, "tokens_per_second": 1800.0}
    stage.finish(count, timing=timing, tokens={"trained": 36_000}, model={"name": "tuned", "revision": "r2"})
    return stage.store


@pytest.fixture
def pipeline_store(tmp_path, explore_store, synthesize_store, finetune_store, evaluations):
    source = {"name": "chain_sum", "limit": 30}
    config = PipelineConfig(out=str(tmp_path), suites={"in_domain": (source,)}, explore={"problems": (source,)})
    stage = StageRun("pipeline", config, config.out)
    stages = ["evaluate_before", "explore", "synthesize", "finetune", "evaluate_after"]
    digests = {name: stage.store.child(name).manifest().digest() for name in stages}
    stage.finish(0, timing={"seconds": 100.0}, figures={"stages": digests})
    return SimpleNamespace(store=stage.store, stages=stages)


@pytest.fixture
def tree_of():
    """The maker of hand-made trees: tree_of(number, kinds, branch=..., note=...)."""
    return make_tree
