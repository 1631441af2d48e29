"""Explore on real Ray with the scripted engine: killed anywhere, it ends with the same bytes."""

import collections
import json
import os
import signal
import sys
import threading
import time

import psutil
import pytest
import torch

from raylm.config import build, to_yaml
from raylm.errors import UserError
from raylm.llm import models
from raylm.records import Tree, from_table
from raylm.search.config import ExploreConfig
from raylm.search.explore import run
from raylm.srm import backbone
from raylm.srm.config import BranchConfig, FusionConfig
from raylm.srm.model import RewardModel
from raylm.srm.structure import Structure
from raylm.storage import Store

PROBLEMS = 12
# Checked by number, in the actor's own process: the task's own checker would load all tasks in one more for each actor.
SUMS = {"name": "chain_sum", "limit": PROBLEMS, "seed": 5, "params": {"max_digits": 2}, "checker": "number"}


def config(out, **changes):
    script = {"accuracy": 0.7, "latency": changes.pop("latency", 0.0)}
    data = {
        "out": str(out),
        "problems": [SUMS],
        "engine": {"kind": "scripted", "model": "micro", "script": script, "request_log": f"{out}.requests"},
        "search": {"rounds": 4, "samples": 3, "enough_good": 0},
        "compute": {"cpus": 1, "in_flight": 4},
    }
    return build(ExploreConfig, {**data, **changes})


def data_files(out):
    store = Store(str(out))
    return {name: store.read_bytes(f"data/{name}") for name in store.names("data")}


def requests(out):
    with open(f"{out}.requests") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def repeats_by_tree(out):
    """Requests beyond the first of their kind; a round is one request, and the questions differ."""
    question = {line["request"]: line["prompt"].partition("<|im_end|>")[0] for line in requests(out)}
    counts = collections.Counter(line["request"] for line in requests(out))
    repeats = collections.Counter()
    for request, count in counts.items():
        repeats[question[request]] += count - 1
    return repeats


def strike(out, victims, at):
    """SIGKILL the processes that `victims` picks, all at once, when `at` requests were made."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if os.path.exists(f"{out}.requests") and len(requests(out)) >= at:
            for pid in victims():
                os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.01)
    raise TimeoutError(f"never saw {at} requests")


@pytest.fixture(scope="module")
def reference(ray_cluster, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "explore"
    manifest = run(config(out))
    return out, manifest, data_files(out)


def test_trees_come_in_the_order_of_the_problems_with_a_funnel_that_only_falls(reference):
    out, manifest, _ = reference
    store = Store(str(out))
    trees = from_table(Tree, store.read_data())
    assert manifest.rows == len(trees) == PROBLEMS
    assert [tree.problem_id for tree in trees] == sorted(tree.problem_id for tree in trees)
    assert len({tree.id for tree in trees}) == PROBLEMS
    counts = list(manifest.funnel.values())
    assert counts == sorted(counts, reverse=True)
    assert manifest.funnel["with_both"] > 0
    assert manifest.model["engine"] == "scripted"
    assert manifest.tokens["generated"] == sum(tree.generated_tokens for tree in trees)
    assert manifest.tokens["prompt"] == sum(tree.prompt_tokens for tree in trees)
    assert manifest.figures["trajectories"] == sum(len(tree.trajectories) for tree in trees)
    assert 0 < manifest.figures["pass_rate"] < 1
    timing = store.read_json("timing.json")
    assert timing["generated_tokens"] == manifest.tokens["generated"]
    assert 0 < timing["prefix_hit_rate"] < 1
    assert len(timing["unit_seconds"]) == PROBLEMS
    assert store.names("snapshots") == []
    assert store.names("parts") == []


def test_verdicts_are_those_of_the_task(reference):
    import reasoning_gym

    score = reasoning_gym.get_score_answer_fn("chain_sum")
    for tree in from_table(Tree, Store(str(reference[0])).read_data()):
        for found in tree.trajectories:
            right = found.answer == tree.answer
            assert (found.verdict, found.reward) == (("correct", 1.0) if right else ("wrong", 0.0))
            assert score(found.answer, {"answer": tree.answer, "metadata": {}}) == 1.0 or not right


def test_a_second_run_returns_at_once(reference):
    out, manifest, files = reference
    made = len(requests(out))
    assert run(config(out)) == manifest
    assert len(requests(out)) == made
    assert data_files(out) == files


def test_other_workers_and_latencies_give_the_same_bytes(reference, tmp_path):
    out = tmp_path / "explore"
    compute = {"cpus": 0.5, "in_flight": 16, "min_workers": 2, "max_workers": 2}
    assert run(config(out, latency=0.01, compute=compute)).digest() == reference[1].digest()
    assert data_files(out) == reference[2]


def test_a_killed_actor_costs_each_tree_at_most_a_round(reference, tmp_path):
    out = tmp_path / "explore"
    total = len(requests(reference[0]))
    killer = threading.Thread(target=strike, args=(out, lambda: [requests(out)[-1]["pid"]], total // 2))
    killer.start()
    manifest = run(config(out, latency=0.1))
    killer.join()
    assert len({line["pid"] for line in requests(out)}) == 2
    repeats = repeats_by_tree(out)
    assert max(repeats.values()) <= 1
    assert sum(repeats.values()) <= 4  # trees in flight
    assert len(requests(out)) == total + sum(repeats.values())
    assert manifest.digest() == reference[1].digest()
    assert data_files(out) == reference[2]


def test_overlapping_expansions_survive_a_killed_actor_too(ray_cluster, tmp_path):
    search = {"rounds": 6, "parallel": 3, "samples": 2, "enough_good": 0, "value": {"consistency": 0.5}}
    calm, struck = tmp_path / "calm", tmp_path / "struck"
    expected = run(config(calm, search=search))
    total = len(requests(calm))
    killer = threading.Thread(target=strike, args=(struck, lambda: [requests(struck)[-1]["pid"]], total // 2))
    killer.start()
    manifest = run(config(struck, latency=0.1, search=search))
    killer.join()
    assert len({line["pid"] for line in requests(struck)}) == 2
    assert max(repeats_by_tree(struck).values()) <= 3  # what one tree had in flight
    assert manifest.digest() == expected.digest()
    assert data_files(struck) == data_files(calm)


@pytest.fixture(scope="module")
def structural(tmp_path_factory):
    """A structural reward model on the micro model, with weights as they are drawn."""
    torch.manual_seed(0)
    branches = [BranchConfig(name="quality"), BranchConfig(name="arithmetic", kind="tool")]
    body = backbone.load(models.resolve("micro").path, max_length=512)
    path = tmp_path_factory.mktemp("structural") / "model"
    RewardModel(Structure(body, branches, FusionConfig()), "structural", "").save(path)
    return path


@pytest.mark.parametrize("kind", ["classifier", "structural"])
def test_a_reward_model_stands_in_for_the_verifier(ray_cluster, tmp_path, request, kind):
    value = {"verifier": 0, "reward_model": 1, "model": str(request.getfixturevalue(kind))}
    search = {"strategy": "beam", "rounds": 3, "samples": 3, "beam": 2, "value": value}
    problems = [{**SUMS, "limit": 3}]
    manifest = run(config(tmp_path / "explore", search=search, problems=problems))
    assert "reward_model" in manifest.inputs
    for tree in from_table(Tree, Store(str(tmp_path / "explore")).read_data()):
        assert tree.strategy == "beam"
        rewards = [found.reward for found in tree.trajectories]
        assert all(0 < reward < 1 for reward in rewards)
        assert tree.trajectories[tree.picked].reward == max(rewards)
        assert {found.verdict for found in tree.trajectories} <= {"correct", "wrong"}  # still told, for the data


def test_a_killed_job_goes_on_from_the_snapshots(reference, tmp_path):
    out = tmp_path / "explore"
    total = len(requests(reference[0]))
    path = tmp_path / "explore.yaml"
    path.write_text(to_yaml(config(out, latency=0.1)))
    command = [sys.executable, "-m", "jobs.explore", str(path)]
    with open(tmp_path / "log", "ab") as log:
        job = psutil.Popen(command, stdout=log, stderr=log, start_new_session=True)
        # Driver, Ray and actors at once, as when the machine goes down.
        strike(out, lambda: [job.pid, *(child.pid for child in job.children(recursive=True))], total // 2)
        job.wait()
    assert not Store(str(out)).exists("manifest.json")
    assert 1 <= len(Store(str(out)).names("snapshots")) <= 4  # of the trees in flight, no longer of finished ones
    run(config(out, latency=0.1))
    repeats = repeats_by_tree(out)
    assert max(repeats.values()) <= 1
    assert sum(repeats.values()) <= 4
    assert data_files(out) == reference[2]


def test_an_engine_that_dies_is_started_again_without_a_trace_in_the_data(reference, tmp_path):
    out = tmp_path / "explore"
    script = {"accuracy": 0.7, "latency": 0.02, "fail_after": 30}
    engine = {"kind": "scripted", "model": "micro", "script": script, "request_log": f"{out}.requests"}
    assert run(config(out, engine=engine)).digest() == reference[1].digest()
    assert data_files(out) == reference[2]


def test_bad_input_is_refused_before_anything_starts(tmp_path, reference):
    with pytest.raises(UserError, match=r"problem chain_sum-s5-\d+ with \d+ tokens \(set engine.context=\d+"):
        run(config(tmp_path / "a", engine={"kind": "scripted", "model": "micro", "context": 140}))
    with pytest.raises(UserError, match=r"holds a run with other settings \(config.seed: 0 -> 1"):
        run(config(reference[0], seed=1))
    with pytest.raises(UserError, match="no reasoning-gym task 'chain_sumo'; did you mean chain_sum"):
        run(config(tmp_path / "b", problems=[{"name": "chain_sumo", "limit": 3}]))
    with pytest.raises(UserError, match=r"search\.temperature"):
        config(tmp_path / "c", search={"temperature": 0})
    with pytest.raises(UserError, match="cannot be had"):
        run(config(tmp_path / "d", engine={"kind": "scripted", "model": "no/such-model"}))
    with pytest.raises(UserError, match="cannot write here"):
        run(config("/proc/explore"))
