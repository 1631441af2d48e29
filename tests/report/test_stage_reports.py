import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from raylm import report
from raylm.errors import UserError
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
