"""README shows what the results files say."""

import pytest

from jobs import tables


def test_the_table_in_readme_is_that_of_the_results_files():
    text = (tables.ROOT / "README.md").read_text()
    assert tables.rewritten(text) == text, "run python -m jobs.tables"


def test_a_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match=r"README\.md lacks"):
        tables.rewritten("# raylm\n")


def test_only_what_is_between_the_markers_changes():
    text = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter"
    changed = tables.rewritten(text)
    assert changed.startswith("before\n")
    assert changed.endswith("\nafter")
    assert "old" not in changed
