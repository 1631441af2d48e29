"""Curves for TensorBoard, Weights & Biases and MLflow, by their own clients."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from raylm.errors import UserError
from raylm.train.config import FinetuneConfig


def check(config: FinetuneConfig) -> None:
    """Refuse a client that is not installed.

    Raises:
        UserError: with the package to install.
    """
    for name in config.log_to:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"log_to names {name}, which is not installed; pip install {name}, or leave it out")


class Loggers:
    """Writes numbers to every client that the config names."""

    def __init__(self, config: FinetuneConfig, root: str, step: int) -> None:
        """Open the clients of a run that goes on after `step`; what was written beyond it is overwritten."""
        self._tensorboard: Any = None
        self._wandb: Any = None
        self._mlflow: Any = None
        plain = config.model_dump(mode="json")
        if "tensorboard" in config.log_to:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(os.path.join(root, "tensorboard"), purge_step=step + 1)
        if "wandb" in config.log_to:
            import wandb

            name = os.path.basename(root.rstrip("/"))
            self._wandb = wandb.init(project="raylm", name=name, dir=root, config=plain)
        if "mlflow" in config.log_to:
            import mlflow

            self._mlflow = mlflow
            mlflow.start_run(run_name=os.path.basename(root.rstrip("/")))
            mlflow.log_params({key: value for key, value in plain.items() if not isinstance(value, dict | list)})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers of an optimizer step, counted from 1."""
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)
        if self._mlflow is not None:
            self._mlflow.log_metrics(values, step=step)

    def close(self) -> None:
        """Flush what is held back."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._mlflow is not None:
            self._mlflow.end_run()
