import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from raylm.report import figures
from raylm.report.artefacts import spread
from raylm.report.page import Page, embedded_json, response, steps
from raylm.storage import Store

EVIL = "</script><script>window.hacked=1</script><img src=x onerror=alert(1)>\"' onload=x &amp;"


class Elements(HTMLParser):
    """Every start tag with its attributes, and all text outside scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.inside = [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text += data


def full_page(text):
    page = Page(text, text)
    page.section(text, text)
    page.text(text)
    page.callout(text, "warn")
    page.tiles([(text, text, text)])
    page.table((text, "n"), [(text, 1)])
    page.funnel({text: 3, "b": 1})
    page.bars({text: 3})
    page.intervals([(text, False, [("after", (0.5, 0.4, 0.6))])])
    page.example(text, text, [response(text, "wrong", text, text), steps(text, "correct", [text], 1, 0)])
    page.trees([{"question": text}])
    return page


def plots(text):
    page = Page("plots")
    page.section("all")
    page.figure(figures.lines({text: ([1, 2], [3, 4]), "b": ([1], [2])}, title=text, x=text, y=text), text)
    page.figure(figures.histogram({text: [1, 2], "b": [2]}, title=text, x=text, y=text))
    page.figure(figures.barh({text: 0.5}, title="t", x=text))
    return page


def test_text_of_a_model_never_becomes_markup():
    plain, evil = Elements(full_page("plain").render()), Elements(full_page(EVIL).render())
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attrs) for _, attrs in evil.tags] == [sorted(attrs) for _, attrs in plain.tags]
    assert not any(name.startswith("on") for _, attrs in evil.tags for name in attrs)
    assert EVIL in evil.text


def test_text_in_figures_never_becomes_markup():
    plain, evil = Elements(plots("plain").render()), Elements(plots("<b>$1 & $x_2</b><script>1</script>").render())
    assert {tag for tag, _ in evil.tags} == {tag for tag, _ in plain.tags}
    assert "<b>$1 & $x_2</b><script>1</script>" in evil.text


def test_only_the_hashed_script_may_run_and_nothing_is_fetched():
    html = full_page(EVIL).render()
    policy = next(attrs["content"] for _, attrs in Elements(html).tags if "http-equiv" in attrs)
    assert "default-src 'none'" in policy
    script = re.search(r"script-src ([^;]+)$", policy).group(1)
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]+'", script)
    for tag, attrs in Elements(html).tags:
        assert tag not in ("link", "iframe", "object", "embed")
        assert not any(name in attrs for name in ("src", "srcset"))


def test_a_page_without_trees_allows_no_script():
    page = Page("t")
    page.section("s")
    assert "script-src 'none'" in page.render()
    assert "<script" not in page.render()


def test_add_refuses_plain_text():
    page = Page("t")
    page.section("s")
    with pytest.raises(TypeError, match="Markup"):
        page.add("<b>x</b>")


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_embedded_json_reads_back_and_cannot_end_its_element(value):
    text = embedded_json(value)
    assert not set("<>&") & set(str(text))
    assert json.loads(text) == value


def test_figures_with_equal_data_have_equal_bytes_and_no_fixed_ink():
    first = figures.lines(
        {"loss": ([1, 2, 3], [3.0, 2.0, 1.0])}, title="Loss", x="step", y="nats", level=(1.5, "floor")
    )
    second = figures.lines(
        {"loss": ([1, 2, 3], [3.0, 2.0, 1.0])}, title="Loss", x="step", y="nats", level=(1.5, "floor")
    )
    assert isinstance(first, Markup)
    assert first == second
    assert "currentColor" in first
    assert "#010203" not in first
    assert "<dc:date>" not in first


def test_ids_of_two_figures_on_a_page_are_distinct():
    both = "".join(figures.histogram({"a": [1, 2]}, title=title, x="", y="") for title in ("one", "two"))
    ids = re.findall(r'\bid="([^"]+)"', both)
    assert ids
    assert len(ids) == len(set(ids))


@given(st.lists(st.floats(-100, 100), max_size=40), st.integers(1, 50))
def test_smooth_is_the_mean_of_the_last_values(values, window):
    expected = [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]
    assert figures.smooth(values, window) == pytest.approx(expected, abs=1e-6)


def test_funnel_shares_and_widths():
    page = Page("t")
    page.section("s")
    page.funnel({"problems": 200, "with_pair": 50, "kept": 0, "last": 0})
    html = page.render()
    assert "with pair" in html
    assert "25% of the line above" in html
    assert "width:25.0%" in html


def test_a_funnel_that_changes_its_unit_says_how_many_for_each():
    page = Page("t")
    page.section("s")
    page.funnel({"problems": 20, "pairs": 50})
    assert "2.5 for each one above" in page.render()


@given(st.lists(st.integers(), max_size=50), st.integers(1, 60))
def test_spread_keeps_order_size_and_the_first(items, limit):
    indices = spread(range(len(items)), limit)
    assert len(indices) == min(limit, len(items))
    assert indices == sorted(set(indices))
    gaps = {b - a for a, b in pairwise([*indices, len(items)])} if indices else {1}
    assert max(gaps) - min(gaps) <= 1
    assert not items or indices[0] == 0


def test_intervals_share_one_scale_around_zero_when_signed():
    page = Page("t")
    page.section("s")
    page.intervals([("a", False, [("after", (0.1, -0.1, 0.3))])], signed=True)
    html = page.render()
    assert "left:50.0%" in html  # zero
    assert "+10.0 points [-10.0, +30.0]" in html
    assert "-30%" in html


def test_write_puts_the_page_into_the_artefact(tmp_path):
    page = full_page("x")
    path = page.write(Store(str(tmp_path)))
    assert path == f"{tmp_path}/report.html"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page.render()
