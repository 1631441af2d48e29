"""The study of planted causes: its worlds, and its figures out of rows."""

from collections import Counter

import pytest

from jobs.studies.ilp import analysis, matrix, real
from jobs.studies.ilp.world import GROUPS, Sizes, make
from raylm.ilp.config import CAUSES, ProbeConfig, RuleConfig
from raylm.ilp.items import make as items_of
from raylm.ilp.neighbours import content


def test_a_world_is_what_its_seed_says():
    first, again, other = make(1), make(1), make(2)
    assert (first.samples, first.lines) == (again.samples, again.lines)
    assert first.samples != other.samples
    counts = Counter(row["group"] for row in first.samples)
    assert counts == {**dict.fromkeys(GROUPS[1:], Sizes().group), "clean": 2 * Sizes().clean}
    assert len({row["id"] for row in first.samples}) == len(first.samples)


def test_planted_causes_are_in_the_world_and_nowhere_else():
    world = make(3)
    told = {(question, answer) for question, answer in world.lines if question}
    words = {word for line in world.lines for text in line for word in text.split()}
    rows = {name: [row for row in world.samples if row["group"] == name] for name in GROUPS}
    assert not words & {row["entity"] for row in rows["prerequisite"]}
    assert not {(row["question"], row["answer"]) for row in rows["conflict"]} & told
    pairs = [tuple(rows["inconsistency"][n : n + 2]) for n in range(0, len(rows["inconsistency"]), 2)]
    assert all(a["truth"] == b["truth"] == a["answer"] != b["answer"] for a, b in pairs)
    items = items_of(world.rows(*GROUPS), ProbeConfig())
    asked = Counter(content(item.question) for item in items)
    assert sum(count > 1 for count in asked.values()) == len(pairs)
    assert RuleConfig().same_words


def sample(group, cause, verdict="unlearned", seed=1, **more):
    return {"seed": seed, "kind": "sample", "group": group, "verdict": verdict, "written": verdict == "learned",
            "cause": cause, "other": cause, "nll": 1.0, "confidence": 0.5, "variability": 0.1, "quality": 0.5,
            "issue": 0.0, **more}  # fmt: skip


def repair(fix, target, right, wrong, seed=1):
    return {"seed": seed, "kind": "repair", "fix": fix, "target": target, "right": right, "rephrased": right,
            "retained": 0.9, "general": 0.8, "wrong": wrong, "samples": 10}  # fmt: skip


def test_macro_f1_counts_unexplained_as_a_miss():
    assert analysis.macro_f1(list(CAUSES), list(CAUSES)) == 1.0
    assert analysis.macro_f1(list(CAUSES), ["unexplained"] * 5) == 0.0
    assert analysis.macro_f1(["conflict"] * 2, ["conflict", "underfit"], ["conflict"]) == pytest.approx(2 / 3)


def test_macro_f1_is_that_of_scikit_learn():
    from sklearn.metrics import f1_score

    planted = [*CAUSES, *CAUSES[:3], "conflict"]
    given = [*CAUSES[::-1], *CAUSES[:3], "unexplained"]
    expected = f1_score(planted, given, labels=list(CAUSES), average="macro", zero_division=0)
    assert analysis.macro_f1(planted, given) == pytest.approx(expected)


def test_figures_come_out_of_rows():
    planted = [sample(cause, cause, nll=float(n)) for n, cause in enumerate(CAUSES) for _ in range(6)]
    clean = [sample("clean", "", "learned") for _ in range(19)] + [sample("clean", "underfit")]
    right = {cause: [0, 0, 1] for cause in CAUSES}
    better = {cause: [1, 1, 1] for cause in CAUSES}
    rows = [*planted, *clean, repair("original", "", right, ["a", "b"]), repair("control", "", right, ["b"])]
    for cause, fix in matrix.FIXES.items():
        rows += [repair(name, cause, better if name == fix else right, []) for name in set(matrix.FIXES.values())]
    figures, intervals = analysis.summarise(planted, rows)
    assert (figures["macro_f1"], figures["false_alarm_rate"]) == (1.0, 0.05)
    assert figures["diagonal_wins"] == 5
    assert figures["repair_conflict_minus_control"] == pytest.approx(2 / 3)
    assert figures["masking_persistence"] == 0.5
    assert figures["best_baseline_macro_f1"] < 1.01
    assert set(intervals) <= set(figures)


def test_what_a_plan_mends_is_set_beside_plain_steps():
    def row(verdict, cause, control, plan):
        found = {"verdict_first": verdict, "cause": cause, "right_first": verdict == "learned"}
        return {"kind": "sample", **found, "right_control": control, "right_plan": plan}

    rows = [row("unlearned", "conflict", False, True), row("partial", "unexplained", True, True)]
    rows += [row("learned", "", True, False), *(row("learned", "", True, True) for _ in range(3))]
    rows += [{"kind": "held", "right_first": False, "right_control": True, "right_plan": True}]
    figures, intervals = real.summarise(rows)
    assert (figures["samples"], figures["failed"], figures["prevalence_unlearned"]) == (6, 2, 1 / 6)
    assert (figures["cause_conflict"], figures["cause_unexplained"], figures["cause_underfit"]) == (1, 1, 0)
    assert (figures["mended_first"], figures["mended_control"], figures["mended_plan"]) == (0.0, 0.5, 1.0)
    assert (figures["mended_plan_minus_control"], figures["kept_plan_minus_control"]) == (0.5, -0.25)
    assert intervals["held_plan_minus_control"] == [0.0, 0.0]
