"""Config of soft labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raylm.config import Config, runtime


class SoftLabelConfig(Config):
    """Where the soft labels of training texts come from, and how they enter the loss."""

    kind: Literal["none", "uniform", "prior", "keyword", "centroid", "glle", "propagation", "distillation"] = "none"
    """none: hard labels. uniform, prior: plain and class-prior smoothing. keyword: words that texts and labels share
    (KWLS). centroid: TF-IDF similarity to the mean text of each label. glle, propagation: the labels of neighbours by
    the untouched encoder's vectors. distillation: what a trained classifier says of the text."""
    mode: Literal["single_head", "kl", "two_head"] = "single_head"
    """How they enter: cross-entropy with a mix, a divergence beside the hard loss, or the published second head."""
    alpha: float = Field(0.1, ge=0)
    """Strength of the soft part."""
    teacher: str = runtime("")
    """Of distillation: the artefact of an earlier train-classifier with the same labels, or its model directory."""
    share: float = Field(1.0, ge=0, le=1)
    """Share of the soft label in its mix with the gold one."""
    guard: bool = True
    """Lower that share where another label would pass the gold one; the published form of keyword does not."""
    leave_one_out: bool = True
    """Of keyword and centroid: score each training text as if it was not among those of its label."""
    temperature: Annotated[float, Field(ge=0)] | Literal["length"] = 0.0
    """Of the softmax over scores; 0 takes the one that makes held-out gold labels most likely, length the mean number
    of words of a training text (the published form of keyword)."""
    centre: bool = False
    """Of keyword and centroid: take away each label's mean score over the training texts (source: our choice). Labels
    with many texts have many words and so high scores for every text, which under a long tail is the very mass that
    smoothing should give to the tail."""
    balance: bool = False
    """Give each text's gold label, and every other label in total, as much as uniform smoothing does, so that the kind
    only decides which texts give it (source: our choice)."""
    permute: bool = False
    """Shuffle the values of the labels that are not gold: the control for what is not about likeness of labels."""
    segment: Literal["auto", "words", "spaces", "chinese"] = "auto"
    """How texts fall into words."""
    min_texts: int = Field(1, ge=1)
    """Texts that must hold a word for it to count."""
    neighbours: int = Field(10, ge=1)
    """Of a text in the graph of glle and propagation."""

    @model_validator(mode="after")
    def _fits(self) -> SoftLabelConfig:
        if self.mode == "single_head" and self.alpha > 1:
            raise ValueError(f"alpha={self.alpha}: mode=single_head takes a share from 0 to 1")
        if (self.kind == "distillation") != bool(self.teacher):
            raise ValueError("kind=distillation and teacher=DIRECTORY go together")
        if self.balance and self.kind == "none":
            raise ValueError("balance=true is for soft labels; kind=none has none")
        return self
