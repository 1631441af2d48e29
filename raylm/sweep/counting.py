"""Tune's callback that counts trials which are over.

It is pickled with the sweep, and restored with it in another process: so it is a class of a module, and finds the
progress bar through the module instead of keeping it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ray.tune import Callback

from raylm.progress import Progress

_shown: list[tuple[Progress, frozenset[str]]] = []


@contextlib.contextmanager
def shown_by(progress: Progress, before: frozenset[str]) -> Iterator[None]:
    """Show trials that end on a progress bar, but for those whose directories were done before."""
    _shown.append((progress, before))
    try:
        yield
    finally:
        _shown.pop()


class Counter(Callback):
    """Advances the progress bar."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune calls this for trials that finished or were stopped."""
        for progress, before in _shown:
            if (trial.last_result or {}).get("directory") not in before:
                progress.advance()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune calls this for trials that failed for good."""
        self.on_trial_complete(iteration, trials, trial)
