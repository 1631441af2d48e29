"""Report of a synthesize artefact: the funnel, what was dropped and why, and chains beside the paths they came from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from markupsafe import Markup

from raylm.records import Chain, Tree
from raylm.report import figures
from raylm.report.artefacts import find_input, finished, iterate, made_from, spread, subtitle
from raylm.report.page import Page, block, label, response, steps
from raylm.storage import Manifest, Store

EXAMPLES = 16
"""Chains shown in full."""
FORMS_SHOWN = 12
"""Strongest n-grams shown of each side."""


def build(store: Store, related: dict[str, Store]) -> Page:
    """The page of a finished synthesize artefact."""
    manifest = finished(store)
    chains = list(iterate(store, Chain))
    page = Page("Synthesize: training chains", subtitle(store, manifest))
    page.section("Funnel")
    page.tiles(_tiles(manifest, chains))
    page.funnel(manifest.funnel)
    _add_drops(page, manifest)
    _add_failures(page, manifest)
    _add_kinds(page, chains)
    _add_costs(page, manifest)
    _add_forms(page, store)
    trees = related.get("trees") or find_input(store, manifest.inputs.get("trees"))
    add_examples(page, chains, trees)
    page.section("Made from")
    page.table(("what", "value"), made_from(manifest))
    return page


def add_examples(page: Page, chains: Sequence[Chain], trees: Store | None, limit: int = EXAMPLES) -> None:
    """Chains spread evenly over the artefact, each beside the anchor and the negative path of its pair."""
    shown = spread(chains, limit)
    page.section(
        "Chains",
        f"{len(shown)} of {len(chains)}, spread evenly. Grey steps are shared by anchor and negative; the pivot is "
        "the last of them.",
    )
    if trees is None:
        page.callout(
            "The trees' artefact was not found beside this one, so the paths behind the chains cannot be shown."
        )
    wanted = {chain.tree_id for chain in shown}
    found = {tree.id: tree for tree in iterate(trees, Tree) if tree.id in wanted} if trees is not None else {}
    for index, chain in enumerate(shown):
        question = next((turn.content for turn in reversed(chain.messages) if turn.role == "user"), "")
        note = f"{chain.task}, {chain.method}, contrast {chain.contrast}"
        page.example(question, note, _parts(chain, found.get(chain.tree_id)), opened=index == 0)


def _parts(chain: Chain, tree: Tree | None) -> list[Markup]:
    written = next((turn.content for turn in reversed(chain.messages) if turn.role == "assistant"), "")
    parts = [response("chain", chain.verdict, None, written)]
    if tree is not None:
        parts += [_path(title, ids, chain, tree) for title, ids in _sides(chain) if ids]
    critique = _critique(chain.critique_json)
    if critique:
        parts.append(block("critique", critique))
    return parts


def _sides(chain: Chain) -> list[tuple[str, list[int]]]:
    return [("anchor", chain.anchor_nodes), ("negative", chain.negative_nodes)]


def _path(title: str, ids: list[int], chain: Chain, tree: Tree) -> Markup:
    verdict = next((path.verdict for path in tree.trajectories if path.node_ids == ids), "none")
    pivot = ids.index(chain.pivot_node) if chain.pivot_node in ids else -1
    return steps(title, verdict, [tree.nodes[node].text for node in ids], pivot + 1, pivot)


def _critique(text: str) -> list[tuple[str, str]]:
    """A critique as (name, text) pairs, without what is empty."""
    found = json.loads(text) if text else {}
    if not isinstance(found, dict):
        return [("critique", text)]
    return [(label(name), _plain(value)) for name, value in found.items() if value not in ("", None, [], {})]


def _plain(value: Any) -> str:
    """A value of a critique as lines: one an item of a list, `key: value` for what has keys."""
    if isinstance(value, list):
        return "\n".join(_plain(item) for item in value)
    if isinstance(value, dict):
        return "; ".join(
            f"{label(str(name))}: {_plain(item)}" for name, item in value.items() if item not in ("", None)
        )
    return str(value).strip()


def _tiles(manifest: Manifest, chains: Sequence[Chain]) -> list[tuple[str, str, str]]:
    problems = len({chain.problem_id for chain in chains})
    lengths = [len(chain.messages[-1].content) for chain in chains]
    method = str(manifest.config.get("method", ""))
    return [
        ("chains", f"{len(chains):,}", method),
        ("problems covered", f"{problems:,}", f"{len(chains) / problems:.1f} chains each" if problems else ""),
        ("with a wrong negative", f"{sum(chain.contrast == 'hard' for chain in chains):,}", "contrast hard"),
        ("length of a chain", f"{median(lengths):.0f}" if lengths else "none", "characters, median"),
    ]


def _add_drops(page: Page, manifest: Manifest) -> None:
    dropped: dict[str, Any] = manifest.figures.get("dropped", {})
    if dropped:
        page.section("Why candidates were dropped", "Each candidate is counted at the first check that it failed.")
        page.bars({name.removeprefix("dropped_"): int(count) for name, count in dropped.items()})


def _add_failures(page: Page, manifest: Manifest) -> None:
    """What the critiques say went wrong, and the problems that could not be contrasted."""
    counted = manifest.figures
    failures: dict[str, int] = counted.get("failure_types", {})
    if failures:
        page.section("What went wrong on the other paths", "The surest failure that each critique names.")
        page.bars(failures)
        page.text(
            f"No pair: {counted.get('without_correct', 0)} problems have no correct path, "
            f"{counted.get('without_wrong', 0)} no wrong one."
        )


def _add_costs(page: Page, manifest: Manifest) -> None:
    """Tokens by who spent them; and, where a language model analysed, how far its answers could be used."""
    counted = manifest.figures
    costs: dict[str, Any] = counted.get("cost", {})
    roles = {name: cost for name, cost in costs.items() if isinstance(cost, dict) and any(cost.values())}
    if roles:
        page.section("Tokens", "Prompt tokens count whether a prefix cache spared them or not.")
        rows = [(role, f"{cost['prompt_tokens']:,}", f"{cost['generated_tokens']:,}") for role, cost in roles.items()]
        page.table(("who", "prompt tokens", "generated tokens"), rows)
        each = costs.get("tokens_per_selected_chain")
        if each:
            page.text(f"{each:,.0f} generated tokens for each chain that was selected.")
    rejected: dict[str, int] = counted.get("rejected_critiques", {})
    if rejected:
        page.section("Critiques that were rejected", "Each was asked for again, as often as llm.retries allows.")
        page.bars(rejected)
    within = counted.get("pivots_within_one")
    if within is not None and manifest.config.get("analyst") == "llm":
        page.text(f"{within:.0%} of the claimed pivots lie within one step of where the tree says that the paths part.")


def _add_forms(page: Page, store: Store) -> None:
    """What was learned of the forms of reasoning, where the anchors were chosen by it."""
    if not store.exists("forms.json"):
        return
    learned = store.read_json("forms.json")
    ordered = sorted(learned["weights"].items(), key=lambda item: item[1], reverse=True)
    shown = [*ordered[:FORMS_SHOWN], *ordered[max(FORMS_SHOWN, len(ordered) - FORMS_SHOWN) :]]
    page.section(
        "Forms that win and forms that lose",
        f"Of two answers to one question, one right and one wrong ({learned['learned_from']:,} pairs), which has more "
        "of an n-gram? # stands for a number, ⏎ for the end of a line.",
    )
    named = {gram.replace("\n", "⏎"): weight for gram, weight in shown}
    page.figure(figures.barh(named, title="n-grams of right paths (+) and of wrong paths (-)", x="log-odds"))


def _add_kinds(page: Page, chains: Sequence[Chain]) -> None:
    page.section("By task and contrast")
    kinds = Counter((chain.task, chain.method, chain.contrast) for chain in chains)
    rows = [(task, method, contrast, count) for (task, method, contrast), count in sorted(kinds.items())]
    page.table(("task", "method", "contrast", "chains"), rows)
