"""Problems are the same in every process, and every way a source can be wrong is one line that says what to do."""

import gzip
import json
import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylm.config import build
from raylm.errors import UserError
from raylm.records import Problem
from raylm.tasks import procedural
from raylm.tasks.config import SourceConfig
from raylm.tasks.procedural import in_part, pack, unpack
from raylm.tasks.sources import load_problems, overlap

ROWS = [{"id": f"row-{index}", "question": f"What is {index} + 1?", "answer": str(index + 1)} for index in range(8)]
ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def source(**fields):
    return build(SourceConfig, {"name": "data", **fields})


def file_source(path, **fields):
    return source(kind="dataset", path=str(path), **fields)


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def refused(*sources):
    with pytest.raises(UserError) as caught:
        load_problems(sources)
    message = str(caught.value)
    assert "\n" not in message
    return message


def has(message, *words):
    assert all(word in message for word in words), message


# Procedural tasks


@pytest.fixture
def drawn_here(monkeypatch):
    """Draws in this process: which one it is changes nothing (see the first test), and a new one takes seconds."""
    monkeypatch.setattr(
        procedural, "_draw", lambda request: procedural._problems(json.dumps(procedural.answer(request)))
    )


def test_the_same_problems_come_out_in_every_process():
    code = (
        "from raylm.tasks.sources import load_problems as load; from raylm.tasks.config import SourceConfig as S;"
        "print([p.question for t in ('isomorphic_strings', 'chain_sum') for p in load([S(name=t, limit=3)])])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    ]
    assert runs[0] == runs[1]


@pytest.mark.usefixtures("drawn_here")
def test_a_shorter_source_is_the_beginning_of_a_longer_one():
    short, long = (load_problems([source(task="chain_sum", limit=limit)]) for limit in (3, 12))
    assert long[:3] == short
    assert load_problems([source(task="chain_sum", limit=9, offset=3)]) == long[3:]


@pytest.mark.usefixtures("drawn_here")
def test_neighbouring_seeds_share_no_stream():
    first, second = (load_problems([source(task="chain_sum", limit=50, seed=seed)]) for seed in (0, 1))
    assert not overlap(first, second)


@pytest.mark.usefixtures("drawn_here")
def test_ids_carry_source_seed_and_draw():
    problem = load_problems([source(name="sums", task="chain_sum", limit=1, seed=7)])[0]
    assert (problem.id, problem.task, problem.checker) == ("sums-s7-000000", "sums", "task")
    assert json.loads(problem.metadata_json)["entry"]["answer"] == problem.answer


@pytest.mark.usefixtures("drawn_here")
def test_repeated_questions_are_drawn_again_until_limit_distinct_ones_are_there():
    problems = load_problems([source(task="chain_sum", limit=120, params=ONE_DIGIT)])
    assert len({problem.question for problem in problems}) == 120


@pytest.mark.usefixtures("drawn_here")
def test_a_task_with_too_few_distinct_problems_says_how_many_there_are():
    message = refused(source(task="chain_sum", limit=201, params=ONE_DIGIT))
    has(message, "data", "gave only", "distinct problems, 201 were asked for", "lower limit")
    assert "gave only 200 distinct" in message  # ten by ten numbers, two signs: not one is missed
    assert len(load_problems([source(task="chain_sum", limit=200, params=ONE_DIGIT)])) == 200


@pytest.mark.usefixtures("drawn_here")
def test_train_and_test_part_every_question_between_them():
    parts = {
        part: load_problems([source(name=part, task="chain_sum", limit=25, part=part, params=ONE_DIGIT)])
        for part in ("train", "test")
    }
    assert not overlap(parts["train"], parts["test"])


@given(st.text(max_size=50))
def test_every_question_is_in_exactly_one_part(question):
    assert in_part(question, "train") != in_part(question, "test")
    assert in_part(question, "all")


@pytest.mark.usefixtures("drawn_here")
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task": "chain_sums"}, ["no reasoning-gym task 'chain_sums'", "did you mean", "chain_sum"]),
        ({"task": "chain_sum", "params": {"min_term": 2}}, ["no parameter 'min_term'", "did you mean min_terms"]),
        ({"task": "chain_sum", "params": {"seed": 2}}, ["params.seed", "source's seed"]),
        ({"task": "chain_sum", "params": {"min_terms": 0, "min_digits": 1}}, ["params.min_terms=0 does", "positive"]),
        ({"task": "chain_sum", "params": {"min_terms": "two"}}, ["params.min_terms='two'"]),
        ({"task": "chain_sum", "params": {"min_terms": 5, "max_terms": 2}}, ["params.min", "params.max_terms=2"]),
        ({"task": "graph_color", "checker": "exact"}, ["no single right answer", "must be task, not exact"]),
        ({"task": "composite"}, ["composite", "at least one dataset"]),
    ],
)
def test_wrong_tasks_and_parameters_are_named(fields, words):
    has(refused(source(limit=2, **fields)), "source data", *words)


def test_a_source_that_is_drawn_twice_in_a_process_is_drawn_once(monkeypatch):
    first = load_problems([source(task="chain_sum", limit=2, seed=99)])
    monkeypatch.setattr(procedural.subprocess, "run", None)
    assert load_problems([source(task="chain_sum", limit=2, seed=99)]) == first


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(st.integers() | st.text(max_size=3), max_size=3)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["__tuple__", "__set__", "__dict__"]), inner, max_size=3
        )
        | st.dictionaries(st.integers() | st.tuples(st.integers(), st.integers()), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(NESTED)
def test_an_entry_survives_its_json(value):
    assert unpack(json.loads(json.dumps(pack(value)))) == value


# Datasets


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
def test_json_lines(tmp_path, name):
    problems = load_problems([file_source(write(tmp_path / name, ROWS))])
    assert [(item.id, item.question, item.answer, item.checker) for item in problems] == [
        (f"data-{row['id']}", row["question"], row["answer"], "math") for row in ROWS
    ]


def test_parquet_and_a_glob_and_a_remote_path(tmp_path):
    import fsspec

    pq.write_table(pa.Table.from_pylist(ROWS[:5]), tmp_path / "b.parquet")
    write(tmp_path / "a.jsonl", ROWS[5:])
    problems = load_problems([file_source(tmp_path / "[ab].*")])
    assert [item.id for item in problems] == [f"data-row-{index}" for index in (5, 6, 7, 0, 1, 2, 3, 4)]
    with fsspec.open("memory://rows/one.jsonl", "w") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    assert len(load_problems([file_source("memory://rows/one.jsonl")])) == 1


def test_saved_hugging_face_datasets_and_directories_of_files(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    split = datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS[:3])})
    split.save_to_disk(str(tmp_path / "splits"))
    assert len(load_problems([file_source(tmp_path / "saved")])) == 8
    assert len(load_problems([file_source(tmp_path / "splits", split="test")])) == 3
    has(refused(file_source(tmp_path / "splits")), "no split 'train'", "it has test")


def test_rows_without_ids_are_numbered_across_files(tmp_path):
    rows = [{key: row[key] for key in ("question", "answer")} for row in ROWS]
    write(tmp_path / "a.jsonl", rows[:4])
    write(tmp_path / "b.jsonl", rows[4:])
    problems = load_problems([file_source(tmp_path / "*.jsonl")])
    assert [item.id for item in problems] == [f"data-{index:06d}" for index in range(8)]


def test_offset_limit_part_and_shuffle_pick_rows(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    assert [item.id for item in load_problems([file_source(path, offset=2, limit=3)])] == [
        "data-row-2",
        "data-row-3",
        "data-row-4",
    ]
    shuffled = [load_problems([file_source(path, shuffle=True, seed=seed)]) for seed in (0, 0, 1)]
    assert shuffled[0] == shuffled[1] != shuffled[2]
    assert {item.id for item in shuffled[0]} == {item.id for item in shuffled[2]}
    train, test = (load_problems([file_source(path, part=part)]) for part in ("train", "test"))
    assert sorted(item.id for item in train + test) == [f"data-row-{index}" for index in range(8)]


def test_the_environment_is_expanded_and_an_unset_variable_named(tmp_path, monkeypatch):
    write(tmp_path / "rows.jsonl", ROWS)
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    assert len(load_problems([file_source("${MY_DATA}/rows.jsonl")])) == 8
    assert len(load_problems([file_source("$MY_DATA/rows.jsonl")])) == 8
    monkeypatch.delenv("MY_DATA")
    has(refused(file_source("${MY_DATA}/rows.jsonl")), "environment variable MY_DATA", "not set", "export MY_DATA")


def test_problems_do_not_depend_on_where_the_folder_stands(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "rows.jsonl", ROWS)
    one, two = (load_problems([file_source(tmp_path / name / "rows.jsonl")]) for name in ("one", "two"))
    assert one == two


def test_separators_inside_strings_do_not_end_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff{"question": "a\u2028b\u0085c", "answer": 5}\n\n', encoding="utf-8")
    problem = load_problems([file_source(path)])[0]
    assert (problem.question, problem.answer) == ("a\u2028b\u0085c", "5")


LINE = json.dumps(ROWS[0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"{LINE}\n{{bad\n", ["rows.jsonl:2", "not valid JSON", "column 2"]),
        (f"{LINE}\n[1, 2]\n", ["rows.jsonl:2", "one JSON object, not a list"]),
        ("[" * 100_000, ["rows.jsonl:1", "JSON"]),
        ("", ["has 0 rows", "check path"]),
        ("\n\n", ["has 0 rows"]),
        ('{"question": "q"}', ["rows.jsonl:1", "no field 'answer'", "it has question", "answer_field"]),
        ('{"prompt": "q", "answer": "1"}', ["rows.jsonl:1", "no field 'question'", "answer, prompt", "question_field"]),
        ('{"question": "q", "answer": " "}', ["rows.jsonl:1", "'answer' is empty"]),
        ('{"question": "", "answer": "1"}', ["rows.jsonl:1", "'question' is empty"]),
        ('{"question": 5, "answer": "1"}', ["rows.jsonl:1", "'question' is int, not text"]),
        ('{"question": "q", "answer": null}', ["rows.jsonl:1", "'answer' is NoneType, not text"]),
        ('{"question": "q", "answer": true}', ["rows.jsonl:1", "'answer' is bool, not text"]),
        ('{"question": "q", "answer": NaN}', ["rows.jsonl:1", "'answer' is float, not text"]),
        ('{"question": "q", "answer": "1", "id": null}', ["rows.jsonl:1", "'id' holds no id"]),
        (f"{LINE}\n{LINE}\n", ["1 ids in 'id' are used twice", "'row-0'", "rows.jsonl:2", "rows.jsonl:1", "id_field"]),
        (b'{"question": "\xff", "answer": "1"}', ["rows.jsonl:1", "not UTF-8"]),
        (r'{"question": "a \ud83d b", "answer": "1"}', ["rows.jsonl:1", "'question' holds half a character (\\ud83d)"]),
        (r'{"id": "\udc00", "question": "a", "answer": "1"}', ["rows.jsonl:1", "'id' holds half a character"]),
    ],
)
def test_bad_rows_name_file_line_and_remedy(tmp_path, content, words):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    has(refused(file_source(path)), *words)


def test_bad_files_name_themselves(tmp_path):
    write(tmp_path / "rows.jsonl", ROWS)
    whole = write(tmp_path / "rows.jsonl.gz", ROWS).read_bytes()
    (tmp_path / "plain.jsonl.gz").write_text(LINE)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "rows.csv").write_text("question,answer\n")
    has(refused(file_source(tmp_path / "row.jsonl")), "no such file", "did you mean", "rows.jsonl?")
    has(refused(file_source(tmp_path / "zzz" / "rows.jsonl")), "no such file", "no folder", "zzz")
    has(refused(file_source(tmp_path / "q*.jsonl")), "no such file", "q*.jsonl")
    has(refused(file_source(tmp_path / "plain.jsonl.gz")), "plain.jsonl.gz", "gzip")
    has(refused(file_source(tmp_path / "cut.jsonl.gz")), "cut.jsonl.gz", "gzip")
    has(refused(file_source(tmp_path / "bad.parquet")), "bad.parquet", "not readable as Parquet")
    has(refused(file_source(tmp_path / "rows.csv")), "rows.csv", ".jsonl", ".parquet")
    has(refused(file_source("nowhere://bucket/rows.jsonl")), "nowhere")
    has(refused(file_source(tmp_path / "rows.jsonl", limit=9)), "has 8 rows", "limit 9 ask for 9")
    has(refused(file_source(tmp_path / "rows.jsonl", offset=8)), "has 8 rows", "offset 8")
    has(
        refused(file_source(tmp_path / "rows.jsonl", id_field="key")), "rows.jsonl:1", "'key' holds no id", "answer, id"
    )


def test_a_protocol_whose_package_is_missing_is_named(monkeypatch):
    from fsspec.registry import known_implementations

    entry = {"class": "package_that_is_not_installed.Files", "err": "Install package-x to access thing://"}
    monkeypatch.setitem(known_implementations, "thing", entry)
    has(
        refused(file_source("thing://bucket/rows.jsonl")),
        "thing://bucket/rows.jsonl",
        "Install package-x",
        "pip install",
    )


def test_a_hub_dataset_that_cannot_be_had(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = refused(file_source("nobody/no-such-dataset", subset="main"))
    has(message, "nobody/no-such-dataset", "Hugging Face dataset", "'main'", "'train'")


def test_number_checker_wants_numbers(tmp_path):
    path = write(tmp_path / "rows.jsonl", [ROWS[0], {"question": "q", "answer": "#### Paris", "id": "p"}])
    has(refused(file_source(path, checker="number")), "rows.jsonl:2", "no number", "'#### Paris'", "math or exact")
    assert len(load_problems([file_source(path, checker="number", limit=1)])) == 1


def test_ids_are_unique_across_sources(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    assert len(load_problems([file_source(path), file_source(path, name="more")])) == 16
    message = refused(file_source(path), file_source(path, offset=6))
    has(message, "2 problem ids are used twice", "data-row-6, data-row-7", "a name of its own")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"checker": "numbr", "limit": 1}, ["no checker 'numbr'", "did you mean number", "package.module:function"]),
        ({"checker": "a.b:", "limit": 1}, ["no checker 'a.b:'"]),
        ({"kind": "dataset"}, ["needs path"]),
        ({}, ["needs limit"]),
        ({"kind": "dataset", "path": "x.jsonl", "checker": "task"}, ["checker task", "reasoning-gym"]),
    ],
)
def test_configs_that_make_no_sense(fields, words):
    with pytest.raises(UserError) as caught:
        source(**fields)
    has(str(caught.value), *words)


def test_overlap_sees_through_case_and_punctuation():
    train = [Problem("a", "t", "What is 3 + 4?", "7"), Problem("b", "t", "What is 3 - 4?", "-1")]
    assert overlap(train, [Problem("c", "t", "what is 3+4", "7")]) == train[:1]
    assert overlap(train, []) == []


@pytest.mark.parametrize(
    "row",
    [
        {"id": "gsm8k-0", "question": "Ann’s hens lay 16 eggs.\nHow many?", "answer": "16", "solution": "<<4*4=16>>16"},
        {
            "id": "svamp-1",
            "question": "How much?",
            "answer": "51",
            "solution": "( 76.0 - 25.0 )",
            "type": "Subtraction",
        },
        {"id": "singleop-0", "question": "How many caps are in the box?", "answer": "14.5", "solution": ""},
    ],
)
def test_word_problem_sets_load_with_the_default_fields(tmp_path, monkeypatch, row):
    """Gzipped JSON lines with fields of their own beside question and answer, found through the environment."""
    (tmp_path / "set").mkdir()
    rows = [row, {**row, "id": "last", "question": "And then?"}]
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rows)
    (tmp_path / "set" / "test.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.setenv("RAYLM_DATA", str(tmp_path))
    problems = load_problems([file_source("${RAYLM_DATA}/set/test.jsonl.gz", checker="number")])
    assert [problem.question for problem in problems] == [row["question"], "And then?"]
    assert {problem.answer for problem in problems} == {row["answer"]}
