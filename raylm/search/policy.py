"""The decisions of a search that are no tree operations: requests and their seeds, and when a tree is finished."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from raylm.llm.protocol import Sampling
from raylm.search.config import SearchConfig
from raylm.search.tree import Limits


def limits(config: SearchConfig) -> Limits:
    """What the tree itself needs to know of the config."""
    return Limits(
        c=config.c,
        max_depth=config.max_depth,
        max_tokens=config.max_tokens,
        widen=config.widen,
        widen_power=config.widen_power,
        patience=config.patience,
        rule=config.rule,
        backup=config.backup,
    )


def request_seed(seed: int, problem_id: str, expansion: int) -> int:
    """A seed in [0, 2^31) that depends on the arguments alone, in every process."""
    # The last part keeps the seeds, and so the trees, of searches that were made before expansions overlapped.
    text = "\x1f".join(("search", str(seed), problem_id, str(expansion), "0"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF


def temperature(config: SearchConfig, expansion: int) -> float:
    """That of an expansion, which counts from 0: a straight line to `temperature_end` at the last one of `rounds`."""
    if config.temperature_end is None or config.rounds == 1:
        return config.temperature
    share = min(expansion / (config.rounds - 1), 1.0)
    return config.temperature + share * (config.temperature_end - config.temperature)


def sampling(config: SearchConfig, expansion: int, samples: int, prefix_tokens: int, seed: int) -> Sampling:
    """How to continue a leaf whose response has `prefix_tokens` tokens so far."""
    return Sampling(
        n=samples,
        temperature=temperature(config, expansion),
        top_p=config.top_p,
        max_tokens=config.max_tokens - prefix_tokens,
        seed=seed,
        logprobs=True,
    )


def finished(
    config: SearchConfig, verdicts: Mapping[str, int], *, expansions: int, tokens: int, nodes: int, seconds: float
) -> bool:
    """Whether a tree starts no further expansion.

    Args:
        config: the budgets and stops.
        verdicts: how many trajectories so far have each.
        expansions: started so far.
        tokens: generated so far.
        nodes: of the tree.
        seconds: spent on the tree.
    """
    for spent, budget in (
        (tokens, config.token_budget),
        (nodes, config.node_budget),
        (seconds, config.seconds_budget),
    ):
        if budget and spent >= budget:
            return True
    good, bad = verdicts.get("correct", 0), verdicts.get("wrong", 0)
    if not config.value.verifier:  # a search that does not know the answers must not stop by them either
        return expansions >= config.rounds
    if config.enough_good and config.enough_bad and good >= config.enough_good and bad >= config.enough_bad:
        return True
    if config.easy_rounds and good and good == sum(verdicts.values()) and expansions >= config.easy_rounds:
        return True
    limit = max(config.rounds, config.hard_rounds) if not good else config.rounds
    return expansions >= limit
