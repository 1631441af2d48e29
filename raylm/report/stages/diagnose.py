"""Report of a diagnosis: how much was not learned, why, what is to be done, and what a repair changed."""

from __future__ import annotations

from typing import Any

from raylm.ilp.causes import UNEXPLAINED
from raylm.ilp.config import CAUSES
from raylm.report import figures
from raylm.report.artefacts import finished, made_from, spread, subtitle, timing
from raylm.report.page import Page, block, format_interval, format_p, label, response
from raylm.storage import Manifest, Store

NAMES = {
    "inconsistency": "III inconsistent data",
    "prerequisite": "I missing prerequisite",
    "conflict": "II conflict with the base",
    "forgotten": "IV forgotten later",
    "underfit": "V too few exposures",
    UNEXPLAINED: "unexplained",
}
MEANING = {
    "inconsistency": "Another sample asks the same and answers otherwise. Plan: drop the one that the majority or the "
    "base model speaks against, else keep the pair out of one batch.",
    "prerequisite": "The base model cannot give the answer and has not met what is asked about. Plan: documents "
    "about it come first.",
    "conflict": "The base model is sure of another answer. Plan: weight.",
    "forgotten": "Training had it right at several exposures, and it is wrong in the end. Plan: shuffle or replay.",
    "underfit": "Its loss is still falling and it was hardly ever right. Plan: weight and more passes.",
    UNEXPLAINED: "No rule holds, or what a rule needs was not to be had.",
}
EXAMPLES = 5
"""Of each cause."""


def build(store: Store, related: dict[str, Store]) -> Page:
    """The page of a finished diagnosis."""
    del related
    manifest = finished(store)
    failed = store.read_table("data/unlearned.parquet").to_pylist()
    page = Page("Diagnose: what was not learned", subtitle(store, manifest))
    _add_overview(page, store, manifest)
    _add_causes(page, manifest, failed)
    _add_map(page, store, manifest, failed)
    _add_plan(page, manifest)
    if "comparison" in manifest.figures:
        _add_comparison(page, manifest.figures["comparison"])
    _add_examples(page, failed)
    page.section("Made from")
    page.table(("what", "value"), made_from(manifest))
    return page


def _add_overview(page: Page, store: Store, manifest: Manifest) -> None:
    found, ran = manifest.figures, timing(store)
    page.section(
        "Overview",
        "A sample is unlearned when the tuned model neither chooses its answer among others (P1) nor writes it (P2), "
        "and partial when it fails at one of the two. Intervals are Wilson's, 95%.",
    )
    counts, floor = found["verdicts"], found["chance_floor"]
    share = (found["prevalence"], *found["prevalence_interval"])
    written = (found["wrong_when_writing"], *found["wrong_when_writing_interval"])
    looked = manifest.funnel["looked_at"]
    page.tiles([
        ("unlearned", f"{counts['unlearned']:,}", format_interval(share)),
        ("partial", f"{counts['partial']:,}", f"of {looked:,} samples looked at"),
        ("wrong when writing", f"{written[0]:.1%}", format_interval(written)),
        ("P1 by guessing", f"{floor:.0%}", "of samples would fail P1 if answers were guessed"),
        ("longest option is right", f"{found['longest_is_right']:.0%}", "of the multiple choices"),
        ("loss not lowered", f"{found['not_improved']:,}", f"of {found['loss_compared']:,} samples (P3)"),
        ("seconds", f"{ran.get('seconds', 0):,.0f}", f"{manifest.tokens and sum(manifest.tokens.values()):,} tokens"),
    ])  # fmt: skip
    for text in found["warnings"]:
        page.callout(text[0].upper() + text[1:] + ".", "warn")
    if found["general"]:
        before, after = found["general"]["base"], found["general"]["tuned"]
        page.text(f"General set: {before:.3f} nats a token under the base, {after:.3f} under the tuned model.")
    page.funnel(manifest.funnel)


def _add_causes(page: Page, manifest: Manifest, failed: list[dict[str, Any]]) -> None:
    found = manifest.figures
    page.section(
        "Causes",
        "Rules are asked one after the other, so shares depend on the order; those of another one stand beside them.",
    )
    first, other, both = found["causes"], found["causes_other_order"], found["causes_with_partial"]
    page.figure(
        figures.barh({NAMES[name]: first[name] for name in first}, title="Unlearned samples by cause", x="samples")
    )
    rows = []
    for name in (*CAUSES, UNEXPLAINED):
        sure = [row["confidence_of_cause"] for row in failed if row["cause"] == name and row["verdict"] == "unlearned"]
        mean = f"{sum(sure) / len(sure):.2f}" if sure and name != UNEXPLAINED else ""
        open_ = found["not_assessable"].get(name, 0)
        rows.append((NAMES[name], first[name], other[name], both[name], mean, open_ or "", MEANING[name]))
    page.table(
        (
            "cause",
            "unlearned",
            "in the other order",
            "with partial ones",
            "confidence",
            "not assessable",
            "what it means",
        ),
        rows,
    )
    page.text(
        f"Both orders name the same cause for {found['order_agreement']:.0%} of unlearned samples. "
        f"{found['contradictions']:,} pairs of samples contradict each other; {found['no_normal_form']:,} samples have "
        "no normal form (long text), so contradictions among them are not looked for."
    )


def _add_map(page: Page, store: Store, manifest: Manifest, failed: list[dict[str, Any]]) -> None:
    page.section(
        "Dataset map",
        "Each sample's mean probability of its answer over its exposures in training, against how much that varied.",
    )
    if not manifest.figures.get("log"):
        page.text("Without a log of the training there is no map.")
        return
    points = store.read_table("data/map.parquet").to_pylist()
    cause = {row["id"]: row["cause"] for row in failed}
    groups: dict[str, tuple[list[float], list[float]]] = {"learned": ([], [])}
    for name in (*CAUSES, UNEXPLAINED):
        groups[NAMES[name]] = ([], [])
    for row in points:
        group = NAMES[cause[row["id"]]] if row["id"] in cause else "learned"
        groups[group][0].append(row["variability"])
        groups[group][1].append(row["confidence"])
    kept = {name: each for name, each in groups.items() if each[0] or name == "learned"}
    page.figure(
        figures.scatter(
            kept, title="Confidence and variability", x="variability", y="confidence", y_limits=(-0.03, 1.03)
        )
    )


def _add_plan(page: Page, manifest: Manifest) -> None:
    plan = manifest.figures["plan"]
    page.section("Plan", "plan.json, for `raylm finetune ... plan=`.")
    notes = {
        "drop": "samples left out",
        "separate": "pairs kept out of one batch",
        "upweight": "samples that come more often",
        "shuffle": "all tasks mixed",
        "replay": "samples that come back",
        "extra_epochs": "further passes, until the general set suffers",
        "documents": "documents trained on first",
        "documents_unverified": "written documents without the answer, left out",
    }
    page.table(("what", "how much", "meaning"), [(label(key), _shown(plan[key]), text) for key, text in notes.items()])
    page.text(f"The flagged samples are in {manifest.figures['exported']}, in the form they came in.")


def _add_comparison(page: Page, comparison: dict[str, Any]) -> None:
    page.section(
        "Before and after",
        f"The earlier diagnosis of {comparison['shared']:,} of these samples. Samples that were flagged on one run "
        "tend to do better on any other; a control of equally many steps tells repair from luck.",
    )
    groups = [name for name in ("flagged", "rest", *CAUSES, UNEXPLAINED) if name in comparison]
    marks = []
    for name in groups:
        item = comparison[name]
        marks.append(
            (_group(name), name not in ("flagged", "rest"), [("after", (item["difference"], *item["interval"]))])
        )
    page.intervals(marks, signed=True)
    page.table(
        ("samples", "number", "right before", "right after", "difference", "p-value", "learned now"),
        [
            (_group(name), item["samples"], f"{item['right_before']:.1%}", f"{item['right_after']:.1%}",
             format_interval((item["difference"], *item["interval"]), signed=True), format_p(item["p_value"]),
             item["learned_after"])
            for name in groups if (item := comparison[name])
        ],
    )  # fmt: skip
    page.text(f"Overlap of flagged samples before and after: {comparison['overlap_of_flagged']:.0%} (Jaccard).")


def _add_examples(page: Page, failed: list[dict[str, Any]]) -> None:
    page.section("Examples", "Of each cause, with the signals that speak for it.")
    for name in (*CAUSES, UNEXPLAINED):
        own = [row for row in failed if row["cause"] == name]
        own.sort(key=lambda row: (row["verdict"] != "unlearned", -row["confidence_of_cause"], row["id"]))
        for row in spread(own[: 4 * EXAMPLES], EXAMPLES):
            parts = [
                response("Question", "", None, row["question"]),
                response("Sample's answer", "correct", None, row["answer"]),
                response("Model writes", "wrong" if row["written"] is False else "correct", None, row["response"]),
                block("table", ("signal", "value"), _signals(row), [False, False]),
            ]
            note = (
                f"{row['verdict']}, confidence {row['confidence_of_cause']:.2f}"
                if name != UNEXPLAINED
                else row["verdict"]
            )
            page.example(f"{NAMES[name]}: {row['id']}", note, parts)


def _signals(row: dict[str, Any]) -> list[tuple[str, str]]:
    shown = (
        "choice", "nll", "base_nll", "contradiction", "opponents", "base_answer", "base_confidence", "base_right",
        "unfamiliarity", "prerequisite_accuracy", "divergence", "exposures", "looks_right", "last_seen", "falling",
    )  # fmt: skip
    return [(label(key), _shown(row[key])) for key in shown if row[key] not in (None, "", [])]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value[:3])) + (" ..." if len(value) > 3 else "")
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _group(name: str) -> str:
    return {"flagged": "flagged before", "rest": "learned before"}.get(name, NAMES.get(name, name))
