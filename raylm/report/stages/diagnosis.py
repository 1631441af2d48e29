"""Report of a reward model's diagnosis: where it errs, and which dimension is at fault."""

from __future__ import annotations

from raylm.report import rewards
from raylm.report.artefacts import finished, made_from, subtitle
from raylm.report.page import Page
from raylm.storage import Store


def build(store: Store, related: dict[str, Store]) -> Page:
    """The page of a finished diagnose-reward artefact."""
    manifest = finished(store)
    found = manifest.figures
    page = Page("Reward model: diagnosis", subtitle(store, manifest))
    page.section("Overview")
    swap = found["swap"]
    page.tiles([
        *rewards.tiles(found),
        ("own prompt wins", rewards.number(swap["own_prompt_wins"]), f"over another's, {swap['texts']:,} responses"),
        ("swapped sides", f"{swap['mirrored']:.1e}", "largest change of a score in other order and company"),
    ])  # fmt: skip
    rewards.add_dimensions(page, found)
    page.section("Calibration")
    page.grid([rewards.calibration(store)])
    rewards.add_bad_cases(page, store.read_json("data/bad_cases.json"))
    page.section("Made from")
    page.table(("what", "value"), made_from(manifest))
    return page
