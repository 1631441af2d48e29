"""Report of a reward model's training: how well it ranks, what its branches say, and where it errs."""

from __future__ import annotations

from raylm.report import figures, rewards
from raylm.report.artefacts import finished, made_from, subtitle
from raylm.report.page import Page, figure
from raylm.storage import Store


def build(store: Store, related: dict[str, Store]) -> Page:
    """The page of a finished train-reward artefact."""
    manifest = finished(store)
    found = manifest.figures
    page = Page("Reward model: branches and their score", subtitle(store, manifest))
    page.section("Overview", "On the test pairs, or on dev where there are none.")
    page.tiles(rewards.tiles(found))
    counts = found["counts"]
    page.table(
        ("part", "pairs", "ratings"),
        [
            (name, *(f"{counts[name][kind]:,}" for kind in ("pairs", "ratings")))
            for name in ("train", "dev", "evaluated")
        ],
    )
    cut = found["cut"]
    page.text(
        f"Cut to the context: {cut['prompts']:,} prompts and {cut['responses']:,} responses. Left out of training "
        f"because dev or test holds their prompts: {found['overlaps']:,}. Pairs whose opposite is there too: "
        f"{found['contradictions']:,}."
    )
    if gate := found.get("gate"):
        kept = "may depend on the prompt" if gate["prompt"] < gate["constant"] else "are the same for all prompts"
        page.text(
            f"The branches' weights {kept}: on training prompts held out, a pair's loss was {gate['prompt']:.3f} nats "
            f"with weights by the prompt and {gate['constant']:.3f} with constant ones."
        )
    _add_training(page, store)
    if found.get("pairs"):
        rewards.add_dimensions(page, found)
        rewards.add_bad_cases(page, store.read_json("data/bad_cases.json"))
    page.section("Made from")
    page.table(("what", "value"), made_from(manifest))
    return page


def _add_training(page: Page, store: Store) -> None:
    steps, looks = (store.read_table(f"data/{name}.parquet").to_pylist() for name in ("steps", "looks"))
    phases = list(dict.fromkeys(row["phase"] for row in steps))
    losses, dev = {}, {}
    for name in phases:
        own = [row for row in steps if row["phase"] == name]
        values = figures.smooth([row["loss"] for row in own], min(25, max(1, len(own) // 10)))
        losses[name] = (list(range(1, len(own) + 1)), values)
        seen = [row for row in looks if row["phase"] == name]
        dev[name] = ([row["epoch"] for row in seen], [row["dev_loss"] / seen[0]["dev_loss"] for row in seen])
    folds = [name for name in phases if name.startswith("branches without")]
    page.section("Training and calibration", "Branches without a fold score its prompts, unseen, for the fusion.")
    blocks = [
        figure(figures.lines(losses, title="Loss", x="optimizer step of the phase", y="loss", faint=folds)),
        figure(
            figures.lines(dev, title="Dev loss", x="epoch of the phase", y="share of the first epoch's", faint=folds)
        ),
    ]
    if store.exists("data/calibration.parquet"):
        blocks.append(rewards.calibration(store))
    page.grid(blocks)
