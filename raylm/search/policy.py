"""The decisions of a search that are no tree operations: requests and their seeds, and when a tree is finished."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from raylm.llm.protocol import Sampling
from raylm.records import Trajectory
from raylm.search.config import SearchConfig
from raylm.search.tree import Limits, SearchTree


def limits(config: SearchConfig) -> Limits:
    """What the tree itself needs to know of the config."""
    return Limits(
        c=config.c,
        max_depth=config.max_depth,
        max_tokens=config.max_tokens,
        widen=config.widen,
        widen_power=config.widen_power,
        patience=config.patience,
    )


def request_seed(seed: int, problem_id: str, round_index: int, leaf_index: int) -> int:
    """A seed in [0, 2^31) that depends on the arguments alone, in every process."""
    text = "\x1f".join(("search", str(seed), problem_id, str(round_index), str(leaf_index)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF


def sampling(config: SearchConfig, prefix_tokens: int, seed: int) -> Sampling:
    """How to continue a leaf whose response has `prefix_tokens` tokens so far."""
    return Sampling(
        n=config.samples,
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens - prefix_tokens,
        seed=seed,
        logprobs=True,
    )


def finished(
    config: SearchConfig, tree: SearchTree, trajectories: Sequence[Trajectory], rounds: int, generated_tokens: int
) -> bool:
    """Whether a tree starts no further round."""
    if rounds >= config.rounds or tree.exhausted():
        return True
    if config.token_budget and generated_tokens >= config.token_budget:
        return True
    if not (config.enough_good and config.enough_bad):
        return False
    verdicts = [trajectory.verdict for trajectory in trajectories]
    return verdicts.count("correct") >= config.enough_good and verdicts.count("wrong") >= config.enough_bad
