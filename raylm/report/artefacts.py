"""Reading finished artefacts for reports: rows shard by shard, inputs by digest, facts for headers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from raylm.errors import UserError
from raylm.progress import format_seconds
from raylm.records import Row, from_table
from raylm.storage import MANIFEST, TIMING, Manifest, Store

Item = TypeVar("Item")


def finished(store: Store) -> Manifest:
    """The manifest of a finished artefact.

    Raises:
        UserError: there is none.
    """
    manifest = store.manifest()
    if manifest is None:
        raise UserError(f"{store.url}: no finished artefact here (manifest.json is missing); run its stage first")
    return manifest


def timing(store: Store) -> dict[str, Any]:
    """Wall-clock facts of an artefact, empty when it has none."""
    return dict(store.read_json(TIMING)) if store.exists(TIMING) else {}


def iterate(store: Store, row_type: type[Row]) -> Iterator[Row]:
    """Rows in order, one shard in memory at a time."""
    for name in data_files(store):
        yield from from_table(row_type, store.read_table(name))


def data_files(store: Store, prefix: str = "data/part-") -> list[str]:
    """Parquet files of an artefact whose names start with `prefix`, in order."""
    names = finished(store).outputs
    return sorted(name for name in names if name.startswith(prefix) and name.endswith(".parquet"))


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` items at even distances, the first always among them."""
    count = min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def find_input(store: Store, digest: str | None) -> Store | None:
    """The artefact with this digest among the neighbours of `store`, None when it is not there."""
    parent, _, own = store.url.rpartition("/")
    if not digest or not parent:
        return None
    neighbours = Store(parent)
    for name in neighbours.names(""):
        if name == own or not neighbours.exists(f"{name}/{MANIFEST}"):
            continue
        candidate = neighbours.child(name)
        manifest = candidate.manifest()
        if manifest is not None and manifest.digest() == digest:
            return candidate
    return None


def subtitle(store: Store, manifest: Manifest) -> str:
    """One line that says what made an artefact."""
    seconds = timing(store).get("seconds")
    model = manifest.model.get("name", "")
    revision = manifest.model.get("revision", "")
    parts = [
        f"model {model}{f' ({revision[:12]})' if revision else ''}" if model else "",
        f"config {manifest.config_hash}",
        f"seed {manifest.config['seed']}" if "seed" in manifest.config else "",
        f"ran {format_seconds(seconds)}" if seconds else "",
        f"raylm {manifest.versions.get('raylm', '?')}",
    ]
    return " · ".join(part for part in parts if part)


def made_from(manifest: Manifest) -> list[tuple[str, str]]:
    """Inputs and versions for the last table of a report."""
    inputs = [(f"input {name}", digest) for name, digest in manifest.inputs.items()]
    return [*inputs, *((name, version) for name, version in manifest.versions.items())]
