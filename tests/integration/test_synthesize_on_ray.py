"""Synthesize on real Ray: hand-made trees in, a finished artefact out, the same bytes every time, bad input refused."""

import json

import pytest

from raylm.config import build
from raylm.crps import run as stage
from raylm.crps.config import SynthesizeConfig
from raylm.errors import UserError
from raylm.records import Chain, Node, Trajectory, Tree, from_table, to_table
from raylm.search.config import ExploreConfig
from raylm.storage import StageRun, Store

TREES = 24
HELD_OUT = "A farmer has seven cows and buys five more cows at the market; how many cows has he now?"


def tree_of(number):
    """A sum of three numbers: one right path, two that slip at different steps; every sixth tree has one kind alone."""
    a, b, c = number + 20, number + 3, 7
    good = [f"{a} + {b} = {a + b}\n", f"{a + b} - {c} = {a + b - c}\n", f"Answer: {a + b - c}"]
    late = [good[0], f"{a + b} - {c} = {a + b - c + 1}\n", f"Answer: {a + b - c + 1}"]
    early = [f"{a} + {b} = {a + b + 2}\n", f"{a + b + 2} - {c} = {a + b + 2 - c}\n", f"Answer: {a + b + 2 - c}"]
    kinds = {0: [(good, "correct")], 1: [(late, "wrong"), (early, "wrong")]}
    nodes = [Node(0, -1, "", [], 0.0, 3, 1.0, False, -1)]
    known, found = {}, []
    for lines, verdict in kinds.get(number % 6, [(good, "correct"), (late, "wrong"), (early, "wrong")]):
        at, path = 0, []
        for line in lines:
            if (at, line) not in known:
                known[at, line] = len(nodes)
                nodes.append(
                    Node(len(nodes), at, line, [1], -1.0, 1, float(verdict == "correct"), line == lines[-1], 0)
                )
            at = known[at, line]
            path.append(at)
        answer = lines[-1].removeprefix("Answer: ")
        found.append(Trajectory(path, "".join(lines), answer, verdict, float(verdict == "correct"), 9, -3.0, "stop"))
    return Tree(
        f"tree-{number}", f"p{number}", "sums", f"What is {a} + {b} - {c}?", str(a + b - c), "number", "explorer",
        "rev", 0, "hash", 2, nodes, found, 100, 40,
    )  # fmt: skip


def write_trees(folder, trees, shards=2):
    config = ExploreConfig(out=str(folder), problems=({"name": "chain_sum", "limit": 1},))
    artefact = StageRun("explore", config, str(folder))
    size = -(-len(trees) // shards)
    for index in range(shards):
        rows = to_table(Tree, trees[index * size : (index + 1) * size])
        artefact.store.write_table(f"data/part-{index:05d}.parquet", rows)
    artefact.finish(len(trees))
    return str(folder)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    return write_trees(tmp_path_factory.mktemp("trees") / "explore", [tree_of(number) for number in range(TREES)])


def held_out(folder, *questions):
    """An evaluation source with these questions."""
    file = folder / "held_out.jsonl"
    rows = [{"id": str(number), "question": text, "answer": "1"} for number, text in enumerate(questions)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "held_out", "kind": "dataset", "path": str(file), "checker": "number"}


def config(trees, out, **changes):
    return build(SynthesizeConfig, {"trees": trees, "out": str(out), **changes})


def files(out):
    store = Store(str(out))
    names = ["manifest.json", "chains.jsonl", *(f"data/{name}" for name in store.names("data"))]
    return {name: store.read_bytes(name) for name in names}


@pytest.fixture(scope="module")
def reference(ray_cluster, trees, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    out = folder / "synthesize"
    monkey = pytest.MonkeyPatch()
    monkey.setattr(stage, "TREES_PER_UNIT", 5)
    manifest = stage.run(config(trees, out, evaluation=[held_out(folder, HELD_OUT)]))
    yield out, manifest, config(trees, out, evaluation=[held_out(folder, HELD_OUT)])
    monkey.undo()


def test_the_artefact_holds_verified_chains_with_funnel_and_costs(reference, trees):
    out, manifest, _ = reference
    chains = from_table(Chain, Store(str(out)).read_data())
    mixed, solved = TREES * 4 // 6, TREES // 6
    assert manifest.rows == len(chains) == 2 * mixed + solved
    assert manifest.funnel == {
        "problems": TREES, "with_correct": mixed + solved, "with_pair": mixed, "candidates": 2 * mixed + solved,
        "valid_critiques": 2 * mixed + solved, "verified": 2 * mixed + solved, "clean": 2 * mixed + solved,
        "unique": 2 * mixed + solved, "decontaminated": 2 * mixed + solved, "selected": len(chains),
    }  # fmt: skip
    figures = manifest.figures
    assert (figures["without_correct"], figures["without_wrong"], figures["lone_paths"]) == (
        TREES // 6,
        TREES // 6,
        solved,
    )
    assert figures["contrast"] == {"hard": 2 * mixed, "none": solved}
    assert figures["cost"]["explorer"] == {"prompt_tokens": 100 * TREES, "generated_tokens": 40 * TREES}
    assert figures["cost"]["tokens_per_verified_chain"] == 40 * TREES / len(chains)
    assert manifest.tokens == {"analyst": 0, "synthesizer": 0}
    assert manifest.inputs["trees"] == Store(trees).manifest().digest()
    assert [chain.tree_id for chain in chains] == sorted(
        (chain.tree_id for chain in chains), key=lambda id: int(id[5:])
    )
    assert Store(str(out)).exists("report.html")


def test_what_is_printed_is_the_funnel(reference, capsys):
    _, manifest, again = reference
    assert stage.run(again) == manifest  # done before: nothing is written again
    printed = capsys.readouterr().err
    assert [word in printed for word in ("problems", "with pair", "valid critiques", "selected")] == [True] * 4


def test_trainers_load_the_chats(reference):
    """Hugging Face datasets reads the file, and a chat template renders every row with its answer at the end."""
    from datasets import load_dataset

    from raylm.llm import models

    out, manifest, _ = reference
    rows = load_dataset(
        "json", data_files=str(out / "chains.jsonl"), split="train", cache_dir=str(out.parent / "cache")
    )
    assert rows.num_rows == manifest.rows
    tokenizer = models.load_tokenizer(models.resolve("micro").path)
    for row in rows:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert text.endswith(f"{row['messages'][-1]['content']}<|im_end|>\n")
        assert row["messages"][-1]["content"].splitlines()[-1].startswith("Answer: ")


def test_trl_trains_on_the_file_as_it_is(reference, tmp_path):
    """TRL's SFTTrainer takes a step on it, and its tokens are those that our own trainer would use."""
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    from raylm.llm import models
    from raylm.llm.chat import training_ids

    out, manifest, _ = reference
    rows = load_dataset(
        "json", data_files=str(out / "chains.jsonl"), split="train", cache_dir=str(out.parent / "cache")
    )
    path = models.resolve("micro").path
    tokenizer = models.load_tokenizer(path)
    settings = SFTConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, report_to=[], use_cpu=True, bf16=False,
        save_strategy="no", max_length=1024, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SFTTrainer(str(path), args=settings, train_dataset=rows, processing_class=tokenizer)
    assert trainer.train().training_loss > 0
    assert len(trainer.train_dataset) == manifest.rows
    for row, used in zip(rows, trainer.train_dataset, strict=True):
        ours, _ = training_ids(tokenizer, row["messages"])
        assert used["input_ids"][: len(ours)] == ours


def test_another_number_of_actors_and_another_cut_write_the_same_bytes(reference, tmp_path, monkeypatch):
    out, _, again = reference
    monkeypatch.setattr(stage, "TREES_PER_UNIT", 32)
    stage.run(again.model_copy(update={"out": str(tmp_path / "out"), "parallelism": 1}))
    assert files(tmp_path / "out") == files(out)


def test_an_interrupted_run_goes_on_from_what_is_done(reference, tmp_path, monkeypatch):
    out, _, again = reference
    again = again.model_copy(update={"out": str(tmp_path / "out")})
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stage.run(again)
    store = Store(str(tmp_path / "out"))
    units = store.names("parts")
    store.remove(f"parts/{units[0]}")
    stage.run(again)
    assert store.read_json("timing.json")["resumed"] == len(units) - 1
    assert files(tmp_path / "out") == files(out)


WRITER = {"kind": "scripted", "model": "micro", "context": 1024, "script": {"accuracy": 1.0}}


def test_a_language_model_writes_what_it_is_not_shown(ray_cluster, trees, tmp_path):
    """The scripted engine solves the problem that stands last in its prompt; paths and answers are not there."""
    llm = {"engine": {**WRITER, "request_log": str(tmp_path / "asked")}, "compute": {"cpus": 1}}
    for method in ("crps", "solve"):
        written = config(trees, tmp_path / method, method=method, synthesizer="llm", llm=llm, without_pair="skip")
        manifest = stage.run(written)
        chains = from_table(Chain, Store(str(tmp_path / method)).read_data())
        assert {chain.synthesizer for chain in chains} == {"llm"}
        assert {chain.writer_model for chain in chains} == {"scripted"}
        assert manifest.tokens["synthesizer"] == manifest.figures["cost"]["synthesizer"]["generated_tokens"] > 0
        assert manifest.figures["cost"]["analyst"]["generated_tokens"] == 0
        assert manifest.model["name"] == "scripted"
        assert manifest.funnel["problems"] == TREES
        if method == "solve":
            assert manifest.funnel["verified"] == TREES
    timing = Store(str(tmp_path / "crps")).read_json("timing.json")
    assert timing["request_seconds"]["synthesizer"] > 0


def test_an_analyst_that_answers_nonsense_costs_its_tries_and_is_counted(ray_cluster, trees, tmp_path):
    roomy = {**WRITER, "model": "smollm2-135m-instruct", "context": 4096}
    llm = {"engine": roomy, "compute": {"cpus": 1}, "retries": 1}
    manifest = stage.run(config(trees, tmp_path / "out", analyst="llm", llm=llm))
    pairs_of_trees = manifest.figures["pairs"]
    assert manifest.figures["rejected_critiques"] == {"json": 2 * pairs_of_trees}
    assert manifest.figures["dropped"]["invalid_critique"] == pairs_of_trees
    assert manifest.funnel["selected"] == manifest.figures["lone_paths"] > 0
    assert manifest.tokens["analyst"] > 0


def test_forms_are_learned_once_kept_and_shown(ray_cluster, trees, tmp_path):
    how = {"pairs": {"anchor": "best_form"}, "pitfall": "none"}
    manifest = stage.run(config(trees, tmp_path / "out", **how))
    store = Store(str(tmp_path / "out"))
    learned = store.read_json(stage.FORMS)
    assert stage.FORMS in manifest.outputs
    assert learned["learned_from"] >= 32
    assert manifest.funnel["selected"] == manifest.funnel["with_correct"]  # one anchor each, and nothing told in it
    assert "Forms that win and forms that lose" in store.read_bytes("report.html").decode()
    again = stage.run(config(trees, tmp_path / "again", **how))
    assert again.outputs == manifest.outputs


def test_too_few_trees_to_learn_forms_from_are_refused_before_work(tmp_path):
    few = write_trees(tmp_path / "explore", [tree_of(2), tree_of(3)], shards=1)
    with pytest.raises(UserError, match=r"4 pairs of a correct and a wrong path are too few to learn forms from \(32"):
        stage.run(config(few, tmp_path / "out", pairs={"anchor": "best_form"}))
    assert Store(str(tmp_path / "out")).names("parts") == []


def test_a_stage_without_a_chain_says_why(ray_cluster, tmp_path):
    bad = write_trees(tmp_path / "explore", [tree_of(number) for number in (1, 7)], shards=1)
    with pytest.raises(UserError, match=r"no chain passed \(problems 2, with correct 0,.*search longer"):
        stage.run(config(bad, tmp_path / "out"))
    leaky = write_trees(tmp_path / "leaky", [tree_of(2)], shards=1)
    strict = config(leaky, tmp_path / "out2", filters={"min_steps": 9})
    with pytest.raises(UserError, match=r"selected 0; dropped: steps 2\)"):
        stage.run(strict)
    assert Store(strict.out).manifest() is None


def test_explored_evaluation_questions_are_refused_before_work(trees, tmp_path):
    source = held_out(tmp_path, "what is 20 + 3 - 7", "What is 21 + 4 - 7?", HELD_OUT)
    with pytest.raises(
        UserError, match=r"2 explored questions are evaluation questions \(p0 'What is 20 \+ 3 - 7\?'; p1"
    ):
        stage.run(config(trees, tmp_path / "out", evaluation=[source]))
    assert Store(str(tmp_path / "out")).names("parts") == []


def test_trees_that_are_missing_unfinished_or_something_else_are_refused(reference, trees, tmp_path):
    with pytest.raises(UserError, match="no finished trees here"):
        stage.run(config(str(tmp_path / "nowhere"), tmp_path / "out"))
    StageRun("explore", ExploreConfig(problems=({"name": "chain_sum", "limit": 1},)), str(tmp_path / "started"))
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        stage.run(config(str(tmp_path / "started"), tmp_path / "out"))
    with pytest.raises(UserError, match="the artefact of synthesize"):
        stage.run(config(str(reference[0]), tmp_path / "out"))
    with pytest.raises(UserError, match="holds no trees"):
        stage.run(config(write_trees(tmp_path / "none", [], shards=1), tmp_path / "out"))
