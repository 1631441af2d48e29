"""Config of soft targets over a query's candidate documents."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raylm.config import Config


class EnhancementConfig(Config):
    """Where the distributions over a batch's documents come from, and how they enter the loss."""

    kind: Literal["none", "uniform", "enhanced", "glle", "propagation", "bm25", "embedding", "teacher"] = "none"
    """none: hard labels. uniform: all candidates alike. enhanced: label enhancement by term weights, contextual vectors
    and a cross-fitted relevance head. glle, propagation: relevant documents of neighbouring queries. bm25, embedding,
    teacher: the scores of BM25, of the untouched encoder, of negatives.teacher."""
    terms: Literal["contextual", "bm25", "keyword"] = "contextual"
    """Term weights of enhanced: a linear head on token vectors (DeepCT's form), BM25's, or keyword smoothing's."""
    alpha: float = Field(0.3, ge=0)
    """Weight of KL(soft || model) beside the hard loss."""
    share: float = Field(0.3, ge=0, le=1)
    """Share of the soft part in a distribution, lowered where a candidate would pass the relevant document."""
    entropy: float = Field(1.0, gt=0)
    """Nats of the soft part; every query's temperature is set to reach it. uniform takes the share at which its mix
    has the entropy that the others' may have at most, so that kinds compare at like entropy."""
    temperature: float = Field(0.05, gt=0)
    """Of the model's softmax in the divergence."""
    folds: int = Field(5, ge=1)
    """Folds of the training queries: heads that score a query have not seen it; 1 lets them see it (a control)."""
    neighbours: int = Field(10, ge=1)
    """Of a query in the graph of glle and propagation."""
    permute: bool = False
    """Shuffle a distribution over the candidates that are not the relevant one: the control for what is not about
    which documents are relevant."""
