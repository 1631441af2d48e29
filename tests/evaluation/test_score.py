import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from raylm.errors import UserError
from raylm.evaluation.config import EvaluateConfig
from raylm.evaluation.score import check_same_questions, compare, score
from raylm.evaluation.stats import wilson
from raylm.records import Judgement, Problem, to_table
from raylm.storage import StageRun

VERDICTS = ("correct", "wrong", "unverifiable")


def row(suite, number, verdict, *, sample=0, answer="1", finish="stop", task="sums"):
    return Judgement(
        suite, f"p{number}", task, f"q{number}", "1", f"Answer: {answer}", answer, verdict, 10, 3, finish, sample
    )


def test_greedy_responses_alone_decide_accuracy():
    rows = [row("in", 0, "correct"), row("in", 0, "wrong", sample=1), row("in", 1, "unverifiable", finish="length")]
    figures = score(rows)["in"]
    assert (figures["questions"], figures["correct"], figures["accuracy"]) == (2, 1, 0.5)
    assert figures["interval"] == list(wilson(1, 2))
    assert (figures["unverifiable"], figures["unfinished"]) == (1, 1)
    assert figures["generated_tokens"] == 9


def test_prompts_are_counted_once_a_request():
    rows = [row("in", 0, "correct", sample=sample) for sample in range(5)]
    assert score(rows)["in"]["prompt_tokens"] == 20


def test_tasks_and_suites_keep_their_order():
    rows = [row("z", 0, "correct", task="t2"), row("z", 1, "wrong", task="t1"), row("a", 0, "wrong")]
    figures = score(rows)
    assert list(figures) == ["z", "a"]
    assert list(figures["z"]["tasks"]) == ["t2", "t1"]
    assert figures["z"]["tasks"]["t2"]["accuracy"] == 1.0


def test_sampled_figures_leave_the_greedy_response_out():
    rows = [row("in", 0, "wrong", answer="9")]
    rows += [row("in", 0, verdict, sample=i, answer=answer) for i, (verdict, answer) in enumerate(
        [("wrong", "2"), ("correct", "1"), ("correct", "1"), ("wrong", "3")], start=1
    )]  # fmt: skip
    figures = score(rows)["in"]
    assert figures["sampled"] == 4
    assert figures["pass_at"] == {"1": 0.5, "2": pytest.approx(1 - 1 / 6), "4": 1.0}
    assert figures["majority"] == 1.0
    assert figures["accuracy"] == 0.0


def test_one_sample_has_no_sampled_figures():
    assert "pass_at" not in score([row("in", 0, "wrong")])["in"]


paired = st.lists(st.tuples(st.sampled_from(VERDICTS), st.sampled_from(VERDICTS)), min_size=1, max_size=40)


@given(paired)
def test_comparison_agrees_with_counting(pairs):
    before = [row("in", i, old) for i, (old, _) in enumerate(pairs)]
    after = [row("in", i, new) for i, (_, new) in enumerate(pairs)]
    figures = compare(before, after, 200, 0)["in"]
    fixed = sum(old != "correct" and new == "correct" for old, new in pairs)
    broken = sum(old == "correct" and new != "correct" for old, new in pairs)
    assert (figures["fixed"], figures["broken"], figures["unpaired"]) == (fixed, broken, 0)
    assert figures["difference"] == pytest.approx((fixed - broken) / len(pairs))
    assert figures["difference"] == pytest.approx(figures["after"] - figures["before"])
    low, high = figures["interval"]
    assert -1 <= low <= high <= 1
    if fixed + broken:
        assert figures["p_value"] == pytest.approx(scipy_stats.binomtest(fixed, fixed + broken).pvalue)
    swapped = compare(after, before, 200, 0)["in"]
    assert swapped["difference"] == pytest.approx(-figures["difference"])
    assert swapped["p_value"] == figures["p_value"]


def test_comparison_with_itself_shows_nothing():
    rows = [row("in", i, VERDICTS[i % 3]) for i in range(9)]
    figures = compare(rows, rows, 200, 0)["in"]
    assert (figures["difference"], figures["interval"], figures["p_value"]) == (0.0, [0.0, 0.0], 1.0)


def test_order_of_the_baseline_does_not_matter():
    before = [row("in", i, VERDICTS[i % 3]) for i in range(20)]
    after = [row("in", i, VERDICTS[(i * i) % 3]) for i in range(20)]
    assert compare(before[::-1], after, 500, 3) == compare(before, after, 500, 3)


def test_unanswered_questions_are_counted_on_both_sides():
    before = [row("in", i, "wrong") for i in (0, 1, 2)]
    after = [row("in", i, "correct") for i in (1, 2, 3, 4)]
    figures = compare(before, after, 200, 0)["in"]
    assert (figures["questions"], figures["unpaired"]) == (2, 3)


@pytest.fixture
def baseline(tmp_path):
    config = EvaluateConfig(out=str(tmp_path / "before"))
    stage = StageRun("evaluate", config, config.out)
    rows = [row("in", 0, "wrong"), row("in", 1, "correct")]
    stage.finish(stage.write_rows([to_table(Judgement, rows)]), figures={"suites": {}, "failed": [["in", "p2"]]})
    return stage.store, rows


def problem(number, question="", answer="1"):
    return Problem(f"p{number}", "sums", question or f"q{number}", answer)


def test_same_questions_pass_and_a_failed_one_counts_as_asked(baseline):
    check_same_questions(*baseline, {"in": [problem(0), problem(1), problem(2)]})


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        ({"in": [problem(0), problem(1), problem(2), problem(3)]}, "1 only here \\(in/p3\\)"),
        ({"in": [problem(0), problem(2)]}, "1 only there \\(in/p1\\)"),
        ({"in": [problem(0, "other"), problem(1), problem(2)]}, "1 with another text or gold \\(in/p0\\)"),
        ({"in": [problem(0), problem(1, answer="7"), problem(2)]}, "1 with another text or gold \\(in/p1\\)"),
        ({"out": [problem(0), problem(1), problem(2)]}, "3 only here .*; 3 only there"),
    ],
)
def test_other_questions_are_refused(baseline, problems, message):
    with pytest.raises(UserError, match=message):
        check_same_questions(*baseline, problems)


def test_a_suite_without_sources_is_refused():
    with pytest.raises(ValueError, match=r"suites\.empty has no sources"):
        EvaluateConfig(suites={"empty": ()})


def test_the_model_overrides_that_of_the_engine():
    assert EvaluateConfig(model="dir").resolved_engine().model == "dir"
    assert EvaluateConfig().resolved_engine().model == EvaluateConfig().engine.model
