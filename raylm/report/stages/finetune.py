"""Report of a finetune artefact: the loss, and which parameters stood still when."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from raylm.report import figures
from raylm.report.artefacts import data_files, finished, made_from, subtitle, timing
from raylm.report.page import Page, figure, label
from raylm.storage import Manifest, Store

_SMOOTHING = 25
"""At most so many steps in the mean that is drawn over a noisy curve."""
_BLOCK = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def build(store: Store, related: dict[str, Store]) -> Page:
    """The page of a finished finetune artefact."""
    manifest = finished(store)
    page = Page("Finetune: training", subtitle(store, manifest))
    page.section("Overview")
    page.tiles(_tiles(store, manifest))
    if manifest.funnel:
        page.funnel(manifest.funnel)
    add_training(page, store)
    if manifest.figures:
        page.section("Figures")
        figures_shown = {name: value for name, value in manifest.figures.items() if name != "measures"}
        page.table(("what", "value"), [(label(name), _short(value)) for name, value in figures_shown.items()])
    page.section("Made from")
    page.table(("what", "value"), made_from(manifest))
    return page


def add_training(page: Page, store: Store) -> None:
    """Sections with the curves of a training run and of its masks."""
    steps = columns(store, "grad_norm")
    page.section("Training", "Loss is the mean over all label tokens of an optimizer step, in nats.")
    if steps["step"]:
        page.grid(_training_plots(steps))
    else:
        page.callout("No optimizer step was taken.", "warn")
    add_watch(page, columns(store, "exact"))
    masks = columns(store, "jaccard_previous")
    if masks.get("step"):
        add_masks(page, masks, finished(store))


def add_watch(page: Page, watch: dict[str, list[Any]]) -> None:
    """Held-out loss and accuracy over the steps, by set, and what each set lost again of its best."""
    if not watch["step"]:
        return
    page.section(
        "Held-out chains",
        "Exact is the share of chains whose every label token is the likeliest one after those before it: what greedy "
        "decoding would give.",
    )
    sets = list(dict.fromkeys(watch["set"]))
    places = {name: [place for place, owner in enumerate(watch["set"]) if owner == name] for name in sets}

    def curves(key: str) -> dict[str, tuple[list[int], list[float]]]:
        return {name: ([watch["step"][p] for p in at], [watch[key][p] for p in at]) for name, at in places.items()}

    exact = curves("exact")
    page.grid([
        figure(figures.lines(curves("loss"), title="Held-out loss", x="optimizer step", y="nats a token")),
        figure(figures.lines(exact, title="Held-out chains got right", x="optimizer step", y="share of chains")),
        *([_forgetting({name: values for name, (_, values) in exact.items()})] if len(exact) > 1 else []),
    ])  # fmt: skip
    rows = []
    for name, (_, values) in exact.items():
        rows.append(
            (name, f"{values[0]:.1%}", f"{max(values):.1%}", f"{values[-1]:.1%}", f"{max(values) - values[-1]:.1%}")
        )
    page.table(("set", "before", "best", "last", "forgotten (best - last)"), rows)


def _forgetting(exact: Mapping[str, Sequence[float]]) -> Markup:
    """What each set has gained at its best so far against what it lost again, from the shares right at every look."""
    paths = {}
    for name, values in exact.items():
        best = list(itertools.accumulate(values, max))
        paths[name] = (
            [high - values[0] for high in best],
            [high - value for high, value in zip(best, values, strict=True)],
        )
    highest = max(max(lost) for _, lost in paths.values())
    return figure(
        figures.lines(
            paths,
            title="Forgetting against plasticity",
            x="learned: best - before (share of chains)",
            y="forgotten: best - now",
            limits=(-0.02, max(0.1, 1.1 * highest)),
        ),
        "A path a set, look by look from the origin: to the right it is learned, upwards it is forgotten again.",
    )


def add_masks(page: Page, masks: dict[str, list[Any]], manifest: Manifest) -> None:
    """How the protected set changed, refresh by refresh."""
    share = manifest.config.get("isolation", {}).get("protect", 0.0)
    page.section(
        "Isolation",
        f"{_protected(manifest.config.get('isolation', {}))} "
        "Overlap is the Jaccard index; two random masks of this density would overlap as the dashed line says.",
    )
    changes = [place for place, value in enumerate(masks["jaccard_previous"]) if value is not None]
    plots = _mask_plots({name: [values[place] for place in changes] for name, values in masks.items()}, share)
    layers = [json.loads(text) for text in masks["layers_json"]]
    page.grid([*(plots if changes else []), *_layer_plots(layers, share, masks["step"])])
    if not changes:
        page.callout("There was one mask and no second to compare it with.")


def _protected(isolation: Mapping[str, Any]) -> str:
    """What a mask holds, in a sentence."""
    which = {"top": "the most important", "bottom": "the least important", "random": "randomly chosen"}
    share, chosen = isolation.get("protect", 0.0), which[isolation.get("choose", "top")]
    source = isolation.get("source", "evolving")
    until = "until the next" if source == "evolving" else "to the end"
    return f"At every refresh {share:.0%} of the parameters, {chosen} ones, are protected {until}."


def columns(store: Store, having: str) -> dict[str, list[Any]]:
    """Columns of the artefact's tables that hold the column `having`, in order; empty without such a table."""
    tables = [store.read_table(name) for name in data_files(store, "data/")]
    fitting = [table for table in tables if having in table.column_names]
    return pa.concat_tables(fitting).to_pydict() if fitting else {"step": []}


def _training_plots(steps: dict[str, list[Any]]) -> list[Markup]:
    at, loss = steps["step"], steps["loss"]
    window = min(_SMOOTHING, max(1, len(at) // 10))
    curves = {"each step": (at, loss)}
    if window > 1:
        curves[f"mean of {window} steps"] = (at, figures.smooth(loss, window))
    faint = ["each step"] if window > 1 else []
    return [
        figure(figures.lines(curves, title="Loss", x="optimizer step", y="nats a token", faint=faint)),
        figure(figures.lines({"lr": (at, steps["lr"])}, title="Learning rate", x="optimizer step", y="learning rate")),
        figure(
            figures.lines({"norm": (at, steps["grad_norm"])}, title="Gradient norm", x="optimizer step", y="L2 norm"),
            "Before clipping.",
        ),
        figure(
            figures.lines(
                {"labels": (at, steps["label_tokens"]), "all": (at, steps["total_tokens"])},
                title="Tokens of a step",
                x="optimizer step",
                y="tokens",
            ),
            "Only label tokens enter the loss.",
        ),
    ]


def random_overlap(share: float) -> float:
    """Expected Jaccard index of two independent random masks of density p: p / (2 - p) (source: our derivation).

    A parameter is in both with chance p^2 and in either with chance 2p - p^2.
    """
    return share / (2 - share)


def _mask_plots(masks: dict[str, list[Any]], share: float) -> list[Markup]:
    at = masks["step"]
    overlap = {
        "with the previous": (at, masks["jaccard_previous"]),
        "with the first": (at, masks["jaccard_first"]),
    }
    note = ""
    if "noise_ceiling" in masks:
        overlap["even and odd steps now"] = (at, masks["noise_ceiling"])
        overlap["odd steps now, even at first"] = (at, masks["halves_first"])
        note = (
            "Masks of the even and of the odd steps differ by noise alone: how far the last line lies below them is "
            "how far importance has moved."
        )
    return [
        figure(
            figures.lines(
                overlap,
                title="Overlap of the masks",
                x="optimizer step",
                y="Jaccard index",
                limits=(-0.02, 1.02),
                level=(random_overlap(share), "random masks"),
            ),
            note,
        ),
        figure(
            figures.lines(
                {"entered": (at, masks["entered"]), "released": (at, masks["released"])},
                title="Parameters that changed sides",
                x="optimizer step",
                y="parameters",
            )
        ),
    ]


def _layer_plots(layers: Sequence[Mapping[str, float]], share: float, at: Sequence[int]) -> list[Markup]:
    """Protected share by the depth of a block and by the kind of a tensor.

    Args:
        layers: for every refresh, name of each tensor to the protected share of its parameters.
        share: that of all parameters.
        at: optimizer step of every refresh.
    """
    by_block = {}
    chosen = {"first mask": 0, "last mask": -1} if len(layers) > 1 else {"only mask": 0}
    for name, place in chosen.items():
        blocks = _mean_by(
            layers[place], lambda tensor: int(found.group(1)) if (found := _BLOCK.search(tensor)) else None
        )
        by_block[f"{name} (step {at[place]})"] = (sorted(blocks), [100 * blocks[block] for block in sorted(blocks)])
    kinds = _mean_by(layers[-1], lambda tensor: tensor.removesuffix(".weight").rpartition(".")[2])
    ordered = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    return [
        figure(
            figures.lines(
                by_block,
                title="Protected share by depth",
                x="block of the model",
                y="protected (%)",
                level=(100 * share, "all parameters"),
            ),
            "Mean over the tensors of a block.",
        ),
        figure(
            figures.barh(
                {kind: 100 * value for kind, value in ordered.items()},
                title="Protected share by kind of tensor",
                x="protected (%), last mask",
            ),
            "Mean over the tensors of a kind.",
        ),
    ]


def _mean_by(layers: Mapping[str, float], group: Callable[[str], Any]) -> dict[Any, float]:
    """Mean density of the tensors of each group; those whose group is None are left out."""
    found: dict[Any, list[float]] = {}
    for tensor, density in layers.items():
        key = group(tensor)
        if key is not None:
            found.setdefault(key, []).append(density)
    return {key: sum(values) / len(values) for key, values in found.items()}


def _tiles(store: Store, manifest: Manifest) -> list[tuple[str, str, str]]:
    steps = columns(store, "grad_norm")
    losses, times = steps.get("loss", []), timing(store)
    isolation = manifest.config.get("isolation", {})
    tiles = [
        ("optimizer steps", f"{len(losses):,}", f"{steps['epoch'][-1]:.1f} epochs" if losses else ""),
        ("first loss", f"{losses[0]:.3f}" if losses else "none", "nats a token"),
        ("last loss", f"{losses[-1]:.3f}" if losses else "none", "nats a token"),
        ("label tokens", f"{sum(steps.get('label_tokens', [])):,}", f"{sum(steps.get('total_tokens', [])):,} in all"),
        ("isolation", f"{isolation.get('protect', 0):.0%}" if isolation.get("enabled") else "off", "protected"),
    ]
    if times.get("tokens_per_second"):
        tiles.append(("tokens a second", f"{times['tokens_per_second']:,.0f}", "wall clock"))
    return tiles


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"
