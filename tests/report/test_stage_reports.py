import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from raylm import report
from raylm.errors import UserError
from raylm.report.facts import Gain
from raylm.report.stages.finetune import random_overlap
from raylm.report.summary import print_summary
from raylm.report.trees import drawing
from raylm.storage import Store

EVIL = "<script>window.hacked=1</script>"


def fingerprint(store):
    """Hash of every file of an artefact but its report."""
    root = Path(store.url)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "report.html"
    }


def html_of(store):
    return (Path(store.url) / "report.html").read_text(encoding="utf-8")


def test_explore_report_shows_rates_tasks_and_trees(explore_store, tree_of):
    before = fingerprint(explore_store)
    path = report.for_stage("explore", explore_store)
    assert path == f"{explore_store.url}/report.html"
    assert fingerprint(explore_store) == before
    html = html_of(explore_store)
    for expected in (">60%<", "sums", "products", "Value by depth", "60% of the line above"):
        assert expected in html
    embedded = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S).group(1))
    assert len(embedded) == 30
    assert embedded[0]["outcome"] == "mixed"
    assert drawing(tree_of(0, ("correct", "wrong"))) in embedded


def test_model_text_with_script_tags_is_inert(explore_store, evaluations):
    for store in (explore_store, evaluations.after):
        report.for_artefact(store.url)
        html = html_of(store)
        assert EVIL not in html
        assert "hacked" in html
    assert len(re.findall("<script", html_of(explore_store))) == 2  # the trees and the browser


def test_reports_are_the_same_when_made_again(explore_store, evaluations):
    for store in (explore_store, evaluations.after):
        report.for_artefact(store.url)
        first = html_of(store)
        report.for_artefact(store.url)
        assert html_of(store) == first


def test_evaluate_report_alone_has_no_comparison(evaluations):
    report.for_artefact(evaluations.before.url)
    html = html_of(evaluations.before)
    assert "pass@k" in html
    assert "Before and after" not in html
    assert "Wrong responses" in html


def test_evaluate_report_compares_with_the_baseline_beside_it(evaluations):
    report.for_artefact(evaluations.after.url)
    html = html_of(evaluations.after)
    figures = evaluations.after.manifest().figures["comparison"]["in_domain"]
    assert f"{100 * figures['difference']:+.1f} points" in html
    assert "I am before: 0." in html
    assert "I am after: 0." in html
    fixed, broken = (
        sum(item[kind] for item in evaluations.after.manifest().figures["comparison"].values())
        for kind in ("fixed", "broken")
    )
    assert f"12 of {fixed} questions." in html
    assert f"{broken} questions." in html


def test_evaluate_report_without_its_baseline_says_so(evaluations, tmp_path):
    far = tmp_path / "far" / "copy"
    shutil.copytree(evaluations.after.url, far)
    report.for_artefact(str(far))
    html = (far / "report.html").read_text(encoding="utf-8")
    assert "baseline&#39;s artefact was not found" in html
    assert "Before and after" in html
    report.for_stage("evaluate", Store(str(far)), {"baseline": evaluations.before})
    assert "I am before: 0." in (far / "report.html").read_text(encoding="utf-8")


def test_reports_of_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="no finished artefact"):
        report.for_artefact(str(tmp_path))
    with pytest.raises(UserError, match="no report for a 'dance' artefact"):
        report.for_stage("dance", Store(str(tmp_path)))


def test_synthesize_report_shows_chains_beside_their_paths(synthesize_store):
    report.for_artefact(synthesize_store.url)
    html = html_of(synthesize_store)
    assert "near duplicate" in html
    for title in ("anchor", "negative", "keeps the order"):
        assert title in html
    assert html.count('<span class="badge">pivot</span>') >= 2
    assert 'class="shared"' in html
    assert EVIL not in html


def test_synthesize_report_tells_costs_and_rejected_critiques(synthesize_store):
    report.for_artefact(synthesize_store.url)
    html = html_of(synthesize_store)
    for text in ("4,321", "analyst", "Critiques that were rejected", "210 generated tokens for each chain", "75% of"):
        assert text in html
    assert ">synthesizer<" not in html  # it cost nothing
    for text in ("premature answer", "6 problems have no correct path, 5 no wrong one"):
        assert text in html


def test_synthesize_report_without_the_trees_says_so(synthesize_store, tmp_path):
    far = tmp_path / "far" / "copy"
    shutil.copytree(synthesize_store.url, far)
    report.for_artefact(str(far))
    html = (far / "report.html").read_text(encoding="utf-8")
    assert "artefact was not found" in html
    assert '<span class="badge">pivot</span>' not in html


def test_finetune_report_plots_training(finetune_store):
    report.for_artefact(finetune_store.url)
    html = html_of(finetune_store)
    for title in ("Loss", "Learning rate", "Gradient norm", "Tokens of a step", "Overlap of the masks", "random masks"):
        assert f">{title}</text>" in html
    for title in ("Protected share by depth", "first mask (step 30)", "up_proj", "Parameters that changed sides"):
        assert f">{title}</text>" in html
    assert ">120<" in html


def test_sets_that_were_watched_show_what_was_learned_and_lost_again(finetune_store):
    report.for_artefact(finetune_store.url)
    html = html_of(finetune_store)
    assert ">Forgetting against plasticity</text>" in html
    for share in ("80.0%", "50.0%"):  # best of the first set, and what it lost of that
        assert share in html
    watch = finetune_store.read_table("data/watch.parquet")
    finetune_store.write_table("data/watch.parquet", watch.slice(0, 3))
    report.for_artefact(finetune_store.url)
    assert "Forgetting against plasticity" not in html_of(finetune_store)


def test_a_single_mask_has_nothing_to_be_compared_with(finetune_store):
    table = finetune_store.read_table("data/isolation.parquet").slice(0, 1)
    finetune_store.write_table("data/isolation.parquet", table)
    report.for_artefact(finetune_store.url)
    html = html_of(finetune_store)
    assert "no second to compare it with" in html
    assert "Overlap of the masks" not in html
    assert "only mask (step 30)" in html
    assert "last mask (step" not in html


def test_random_overlap_is_that_of_random_masks():
    import numpy as np

    rng = np.random.default_rng(0)
    one, two = rng.random((2, 200_000)) < 0.1
    assert random_overlap(0.1) == pytest.approx((one & two).sum() / (one | two).sum(), abs=0.003)
    assert (random_overlap(0.0), random_overlap(1.0)) == (0.0, 1.0)


def test_pipeline_report_tells_the_whole_story(pipeline_store, capsys):
    before = fingerprint(pipeline_store.store)
    path = report.pipeline(pipeline_store.store.url, pipeline_store.stages)
    assert fingerprint(pipeline_store.store) == before
    html = Path(path).read_text(encoding="utf-8")
    for name in pipeline_store.stages:
        assert f'href="{name}/report.html"' in html
    for expected in ("in domain: 18.3% before", "p &lt; 0.001", ">Loss</text>", "data-trees", "Fixed", "36,000"):
        assert expected in html
    assert EVIL not in html
    printed = capsys.readouterr().out
    for expected in ("in domain", "< 0.001", "36,000", "selected", "report.html", "finetune/model"):
        assert expected in printed


def test_pipeline_report_can_be_made_again_from_its_directory_alone(pipeline_store):
    first = Path(report.pipeline(pipeline_store.store.url, pipeline_store.stages)).read_text(encoding="utf-8")
    assert Path(report.for_artefact(pipeline_store.store.url)).read_text(encoding="utf-8") == first


def test_summary_fits_a_terminal(pipeline_store):
    stream = io.StringIO()
    print_summary(pipeline_store.store, pipeline_store.stages, Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    assert len(lines) < 40
    assert all(len(line) <= 80 or pipeline_store.store.url in line for line in lines)
    assert "18.3% [11, 30]  58.3% [46, 70]  +40.0 [+27, +53]  < 0.001" in stream.getvalue()


def test_no_change_is_not_called_a_gain():
    gain = Gain("s", 20, (0.4, 0.2, 0.6), (0.45, 0.3, 0.6), None, (0.05, -0.1, 0.2), 3, 2, 1.0)
    assert not gain.certain
    assert "no change is shown" in gain.sentence()
