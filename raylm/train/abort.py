"""Ending a Ray Train run from the process that waits for it. Ray itself offers that for Ctrl-C alone.

A process that dies while it waits takes the run along, but on a cluster without a dashboard the run's place stays
taken: Ray's cleaner learns of the death from the dashboard. So who wants to end a run has to say so.
"""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train.v2._internal.execution.callback import ControllerCallback


class Announce(ControllerCallback):
    """Hands the run's controller to an actor with a method `begin`."""

    def __init__(self, listener: Any) -> None:
        """Ray Train gives the callback to the controller."""
        self.listener = listener

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called by the controller."""
        del train_run_context
        ray.get(self.listener.begin.remote(ray.get_runtime_context().current_actor))


def abort(controller: Any) -> None:
    """End a run: its workers go at once, and their place is free."""
    with contextlib.suppress(RayActorError):  # the controller ends without an answer
        ray.get(controller.abort.remote())
