"""Is one model tuned from another? Names and shapes decide; weights give evidence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylm.errors import UserError

MATRICES = 8
"""Weight matrices that are compared, evenly spaced."""
UNRELATED = 0.3
"""Mean cosine of weights below which two models are hardly one tuned from the other (I): fine-tuning moves weights by
a few percent of their length, so that the cosine stays near 1; of independent models it is near 0."""


@dataclass(frozen=True, slots=True)
class Kinship:
    """How alike two models' weights are."""

    cosine: float
    """Mean over the compared matrices."""
    identical: bool
    """Whether all of them are equal."""

    @property
    def warning(self) -> str:
        """What a reader should know, empty where nothing is odd."""
        if self.identical:
            return "the model's weights are those of its base: it was not tuned, or the same directory is given twice"
        if self.cosine < UNRELATED:
            return (
                f"the weights of model and base have a mean cosine of {self.cosine:.2f}, as unrelated models have "
                "(a tuned model keeps about 1): causes that ask the base model say nothing if it is not the base"
            )
        return ""


def compare(tuned: Path, base: Path) -> Kinship:
    """How alike the weights of two model directories are.

    Raises:
        UserError: their tensors differ in name or shape, the vocabulary among them.
    """
    left, right = _tensors(tuned), _tensors(base)
    tied = {"lm_head.weight"}  # some writers leave tied weights out
    names = (set(left) | set(right)) - tied
    odd = sorted(name for name in names if left.get(name, (0, ()))[1] != right.get(name, (0, ()))[1])
    if odd:
        shapes = [str(list(found[odd[0]][1])) if odd[0] in found else "missing" for found in (left, right)]
        more = f", and {len(odd) - 1} more tensors differ" if len(odd) > 1 else ""
        raise UserError(
            f"model={tuned} is not tuned from base={base}: {odd[0]} is {shapes[0]} in the model and {shapes[1]} in the "
            f"base{more}; name its own base"
        )
    matrices = sorted(name for name in names if len(left[name][1]) == 2)
    chosen = matrices[:: max(1, len(matrices) // MATRICES)]
    cosines = [_cosine(_read(left[name][0], name), _read(right[name][0], name)) for name in chosen]
    return Kinship(sum(cosines) / max(1, len(cosines)), all(cosine > 1 - 1e-12 for cosine in cosines))


def _tensors(path: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Name to file and shape of every tensor; reads headers alone."""
    from safetensors import safe_open

    found = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no dict
                found[name] = (file, tuple(opened.get_slice(name).get_shape()))
    return found


def _read(file: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name).double().flatten()


def _cosine(left: Any, right: Any) -> float:
    if bool((left == right).all()):
        return 1.0
    return min(1 - 1e-9, float(left @ right / (left.norm() * right.norm()).clamp_min(1e-30)))
