"""Order of the tests: those that start nothing first, so that a plain mistake shows in seconds."""

from __future__ import annotations

from pathlib import Path

INTEGRATION = Path(__file__).parent / "integration"


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: INTEGRATION in item.path.parents)
