"""Config of the diagnose stage.

Evidence of a threshold stands behind its help text: (P) the paper's, (I) ours, (R) published elsewhere.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raylm.config import Config, runtime
from raylm.llm.config import ComputeConfig, EngineConfig, check_gpus
from raylm.tasks.config import VerifierConfig
from raylm.train.config import TaskConfig

CAUSES = ("inconsistency", "prerequisite", "conflict", "forgotten", "underfit")
"""Causes III, I, II, IV and V of the method, in the order in which they are asked."""
Cause = Literal["inconsistency", "prerequisite", "conflict", "forgotten", "underfit"]


class ProbeConfig(Config):
    """What makes a sample unlearned: a wrong answer when it chooses (P1) and when it writes (P2)."""

    options: int = Field(4, ge=2)
    """Options of a multiple choice, the sample's own answer among them."""
    evaluations: int = Field(5, ge=1)
    """Multiple choices a sample, each with a draw of distractors of its own (P)."""
    distractors: int = Field(6, ge=1)
    """Distractors a sample, of which each multiple choice draws (I)."""
    unlearned_below: float = Field(0.2, gt=0, le=1)
    """P1 fails where the share of right choices is below this (P)."""
    check: Literal["auto", "answer", "exact", "rouge"] = "auto"
    """How a written response is compared (P2): by its extracted answer and the verifier, as normalised text, or by
    ROUGE-L. auto takes the first where the sample states a final answer, the second for short ones, else the third."""
    short: int = Field(12, ge=1)
    """Words of an answer up to which auto compares normalised text (I)."""
    rouge: float = Field(0.5, gt=0, le=1)
    """ROUGE-L below which a long response is wrong (I)."""
    nll_margin: float = Field(0.1, ge=0)
    """P3 fails where tuning lowered the loss by less than this, in nats a token (I)."""
    max_tokens: int = Field(256, ge=1)
    """Longest response, in tokens."""
    shortcuts: bool = True
    """Spare P1 where the sample's answer has more than half of the probability, so that no other can have more, and
    P2 where each of its tokens is the likeliest, so that greedy decoding writes it. The verdicts are the same."""


class BaseConfig(Config):
    """What the base model is asked about samples that the tuned one fails on."""

    samples: int = Field(10, ge=1)
    """Sampled responses (P: pass@10)."""
    stop_early: bool = True
    """Ask no further where no more samples could change which causes hold. Off keeps all of these signals."""
    learned: int = Field(200, ge=0)
    """Learned samples whose loss and familiarity the base model gives too, drawn at random; 0 takes all. Causes of the
    others are measured against these."""
    temperature: float = Field(1.0, gt=0)
    """Of these samples."""
    templates: tuple[str, ...] = ("{question}",)
    """Ways to put the last question; the samples are dealt over them, so that confidence counts consistency too."""

    @model_validator(mode="after")
    def _has_question(self) -> BaseConfig:
        if not self.templates or any("{question}" not in item for item in self.templates):
            raise ValueError("templates must each contain {question}")
        return self


class RuleConfig(Config):
    """Thresholds of the causes, and the order in which they are asked."""

    order: tuple[Cause, ...] = ("inconsistency", "prerequisite", "conflict", "forgotten", "underfit")
    """The first cause whose rule holds is the primary one (P)."""
    other_order: tuple[Cause, ...] = ("forgotten", "conflict", "prerequisite", "inconsistency", "underfit")
    """A second order, whose shares are reported beside (I)."""
    neighbours: int = Field(10, ge=1)
    """Nearest questions that a sample's answer is compared with."""
    similarity: float = Field(0.85, gt=0, le=1)
    """III: cosine of two questions above which they may be the same one (P asks for a threshold; the value is I)."""
    same_words: bool = True
    """III: and they must share numbers and content words. Questions that differ in a name alone are as similar as
    paraphrases (I)."""
    base_right: float = Field(0.2, gt=0, le=1)
    """I: share of the base model's samples that are right, below which it does not know the answer (P: pass@10 below
    0.2; the mean over samples, because a guesser among m answers passes at 10 with 1 - (1 - 1/m)^10)."""
    prerequisite_accuracy: float = Field(0.8, gt=0, le=1)
    """I: accuracy of the base model on a sample's own `prerequisites`, up to which it lacks them (P)."""
    unfamiliar: float = Field(3.0, gt=0)
    """I, for samples without `prerequisites`: how far the base model's familiarity with a question, by its least
    expected tokens (R: Min-K%, Shi et al. 2024), lies below the lower quartile of learned samples', in interquartile
    ranges, where it has not met what is asked about (R: "far out" values, Tukey 1977). A quantile of the learned ones
    would not do: they may be of the same kind, and learned nevertheless."""
    min_k: float = Field(0.2, gt=0, le=1)
    """I: share of the question's tokens, the least expected, that count (R: 20%)."""
    confident: float = Field(0.7, gt=0, le=1)
    """II: share of the base model's samples with its most frequent answer, above which it is sure (I)."""
    divergence: float = Field(0.3, ge=0)
    """II: Jensen-Shannon divergence, in nats, between the base model and the sample's answer at the token where it is
    largest (P, of an unstated pair of distributions)."""
    learned_looks: int = Field(2, ge=1)
    """IV: exposures at which every token of the answer was the likeliest, and no more in the end (I)."""
    falling: float = Field(0.05, ge=0)
    """V: share of its first loss by which a sample's loss falls over its exposures, along a line through all (I)."""


class RepairConfig(Config):
    """How the plan mends each cause."""

    upweight: float = Field(4.0, gt=1)
    """II, V: how often a pass holds each of these samples, at most."""
    others_keep: float = Field(2 / 3, gt=0, le=1)
    """II, V: share of their steps that all other samples keep in a training of given length; where many samples need
    weight, each gets less of it (I: at a weight of 4 for six samples of ten, a third of the learned ones were lost)."""
    extra_epochs: float = Field(1.0, ge=0)
    """V: further passes over all samples."""
    general: str = runtime("")
    """V: chains of a general set, on which extra passes end the training when its loss rises; see `max_rise`."""
    max_rise: float = Field(0.05, ge=0)
    """V: rise of the general set's loss, as a share of that before tuning, at which training ends (I)."""
    replay_every: int = Field(500, ge=1)
    """IV: steps between two batches of replayed samples, where the order of the stream is to be kept (P, which replays
    only after a drop of more than 5%)."""
    shuffle: bool = True
    """IV: mix all tasks. Off keeps the order and replays."""
    separate_below: float = Field(0.1, ge=0)
    """III: difference of the base model's loss, in nats a token, below which it does not say which answer is wrong;
    without a majority the samples are then kept apart instead of one being dropped (I)."""
    corpus: str = runtime("")
    """I: JSONL or Parquet file of documents with a `text`, of which the nearest are trained on first."""
    documents_each: int = Field(3, ge=0)
    """I: documents a sample."""
    writer: str = ""
    """I: model that writes documents where there is no corpus; each must hold the sample's answer. Empty writes none:
    the sample's question and answer, as plain text, are all there is."""
    document_share: float = Field(0.2, gt=0, le=1)
    """I: share of these documents in the first stage of training; the rest is general text (P)."""
    general_text: str = runtime("")
    """I: JSONL or Parquet file of general text for the first stage; empty takes the chains themselves as text."""
    document_epochs: float = Field(3.0, gt=0)
    """I: passes over the documents."""


class DiagnoseConfig(Config):
    """Say which samples a tuned model has not learned, why, and what to do."""

    model: str = "runs/finetune/model"
    """The tuned model's directory."""
    base: str = "smollm2-135m-instruct"
    """The model that it was tuned from."""
    revision: str | None = None
    """Commit of a base model from the hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the models."""
    chains: str = runtime("runs/synthesize")
    """The samples it was tuned on: an artefact of synthesize, or a JSONL or Parquet file of rows with `messages`."""
    tasks: tuple[TaskConfig, ...] = ()
    """Several sets of samples instead of `chains`, as in finetune."""
    log: str = runtime("")
    """The training's log of samples: the artefact of finetune, or a Parquet or JSONL file of rows with step, id, loss
    and token_accuracy, as `raylm.ilp.callback` writes it. Without it causes IV and V cannot be assessed."""
    out: str = runtime("runs/diagnose")
    """Directory of the artefact."""
    sample: int = Field(0, ge=0)
    """Look at so many samples, drawn at random, for a quick screen; 0 looks at all."""
    around: int = Field(500, ge=0)
    """In a screen, further samples, drawn at random, whose answers may be distractors. Those that ask the same as a
    sample looked at are there in any case."""
    probe: ProbeConfig = ProbeConfig()
    """What counts as unlearned."""
    ask_base: BaseConfig = BaseConfig()
    """Questions to the base model."""
    rules: RuleConfig = RuleConfig()
    """When a cause holds."""
    repair: RepairConfig = RepairConfig()
    """What the plan does."""
    encoder: str = "all-minilm-l6-v2"
    """Encoder of questions, for neighbours and documents."""
    engine: EngineConfig = EngineConfig()
    """The engine that writes responses; its model is set by the stage."""
    max_length: int = Field(1024, ge=8)
    """Longest sample, in tokens; longer ones are counted and left out, as in training."""
    batch_tokens: int = runtime(4096, ge=64)
    """Tokens of one forward pass."""
    unit: int = runtime(64, ge=1)
    """Samples of one unit of work."""
    before: str = runtime("")
    """Artefact of an earlier diagnosis of the same samples, to compare with sample by sample."""
    verifier: VerifierConfig = VerifierConfig()
    """How answers are checked."""
    compute: ComputeConfig = ComputeConfig()
    """Ray actors."""
    resamples: int = Field(10_000, ge=100)
    """Bootstrap resamples of intervals of differences."""
    seed: int = 0
    """Of the screen's draw, of distractors and of sampling."""

    @model_validator(mode="after")
    def _gpus_suffice(self) -> DiagnoseConfig:
        check_gpus(self.engine, self.compute)
        return self
